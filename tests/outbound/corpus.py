"""URLs that try to reach what the gateway may not reach, each with its verdict: by hand, or by a rule written by hand.

`REFUSED` is stopped by what is written in the URL, before any name is resolved. `TRIED` may be tried: a public
address, or a name, which its addresses decide when it connects. `ANSWERS` is what a name server may say to that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Final

INSIDE: Final = (
    "127.0.0.1",
    "0.0.0.0",
    "10.0.0.5",
    "100.100.100.200",  # a cloud's metadata
    "168.63.129.16",  # another's
    "169.254.169.254",  # most others'
    "172.16.0.1",
    "192.168.1.1",
    "198.18.0.1",
)
"""Where nobody outside may send us."""


def _octets(ip: str) -> tuple[int, int, int, int]:
    first, second, third, fourth = (int(each) for each in ip.split("."))
    return first, second, third, fourth


def _number(ip: str) -> int:
    return int(ipaddress.IPv4Address(ip))


def _digits(ip: str, zero: str) -> str:
    """The same with other digits: those that follow `zero`."""
    return "".join(chr(ord(zero) + int(each)) if each.isdigit() else each for each in ip)


IPV4: Final[Mapping[str, Callable[[str], str]]] = {
    "as it is": lambda ip: ip,
    "trailing dot": lambda ip: f"{ip}.",
    "two trailing dots": lambda ip: f"{ip}..",
    "leading dot": lambda ip: f".{ip}",
    "three parts": lambda ip: "{}.{}.{}".format(*_octets(ip)[:2], _number(ip) & 0xFFFF),
    "two parts": lambda ip: f"{_octets(ip)[0]}.{_number(ip) & 0xFFFFFF}",
    "one decimal": lambda ip: str(_number(ip)),
    "one hexadecimal": lambda ip: f"{_number(ip):#x}",
    "one hexadecimal, upper case": lambda ip: f"0X{_number(ip):08X}",
    "one octal": lambda ip: f"0{_number(ip):o}",
    "one decimal past 32 bits": lambda ip: str(_number(ip) + 2**32),
    "hexadecimal parts": lambda ip: "{:#x}.{:#x}.{:#x}.{:#x}".format(*_octets(ip)),
    "octal parts": lambda ip: "0{:o}.0{:o}.0{:o}.0{:o}".format(*_octets(ip)),
    "long octal parts": lambda ip: "{:07o}.{:07o}.{:07o}.{:07o}".format(*_octets(ip)),
    "mixed parts": lambda ip: "{:#x}.0{:o}.{}.{:#x}".format(*_octets(ip)),
    "zeros in front": lambda ip: "{:03}.{:03}.{:03}.{:03}".format(*_octets(ip)),
    "a part past 8 bits": lambda ip: "{}.{}.{}.{}".format(_octets(ip)[0] + 256, *_octets(ip)[1:]),
    "five parts": lambda ip: f"{ip}.0",
    "an empty hexadecimal part": lambda ip: f"{ip}.0x",
    "full-width digits": lambda ip: _digits(ip, "０"),
    "mathematical digits": lambda ip: _digits(ip, "𝟎"),
    "arabic digits": lambda ip: _digits(ip, "٠"),
    "ideographic stops": lambda ip: ip.replace(".", "。"),
    "full-width stops": lambda ip: ip.replace(".", "．"),
    "half-width stops": lambda ip: ip.replace(".", "｡"),
    "escaped stops": lambda ip: ip.replace(".", "%2e"),
    "escaped first digit": lambda ip: f"%3{ip}",
    "escaped NUL behind": lambda ip: f"{ip}%00.example.com",
    "escaped slash behind": lambda ip: f"{ip}%2f.example.com",
    "a space behind": lambda ip: f"{ip} ",
    "a soft hyphen within": lambda ip: f"{ip[0]}\u00ad{ip[1:]}",
    "a tab within": lambda ip: f"{ip[0]}\t{ip[1:]}",
    "behind a user": lambda ip: f"media.example@{ip}",
    "behind a user and password": lambda ip: f"media.example:443@{ip}",
    "behind an escaped user": lambda ip: f"media.example%40x@{ip}",
    "behind a backslash": lambda ip: f"media.example\\@{ip}",
    "before a backslash": lambda ip: f"{ip}\\@media.example",
    "in brackets": lambda ip: f"[{ip}]",
}
"""Spellings of an IPv4 address in the place of a URL's host."""

IPV6: Final[Mapping[str, Callable[[str], str]]] = {
    "mapped": lambda ip: f"::ffff:{ip}",
    "mapped, hexadecimal": lambda ip: f"::ffff:{_number(ip) >> 16:x}:{_number(ip) & 0xFFFF:x}",
    "mapped, written out": lambda ip: f"0000:0000:0000:0000:0000:FFFF:{ip}",
    "compatible": lambda ip: f"::{ip}",
    "translated": lambda ip: f"::ffff:0:{ip}",
    "NAT64": lambda ip: f"64:ff9b::{ip}",
    "NAT64, written out": lambda ip: (
        f"0064:ff9b:0000:0000:0000:0000:{_number(ip) >> 16:04x}:{_number(ip) & 0xFFFF:04x}"
    ),
    "NAT64 of the local network": lambda ip: f"64:ff9b:1::{ip}",
    "6to4": lambda ip: f"2002:{_number(ip) >> 16:x}:{_number(ip) & 0xFFFF:x}::1",
    "Teredo server": lambda ip: f"2001:0:{_number(ip) >> 16:x}:{_number(ip) & 0xFFFF:x}::f7f7:f7f7",
    "Teredo client": lambda ip: (
        f"2001:0:808:808::{(_number(ip) ^ 0xFFFFFFFF) >> 16:x}:{_number(ip) & 0xFFFF ^ 0xFFFF:x}"
    ),
    "ISATAP, public prefix": lambda ip: f"2606:4700::5efe:{ip}",
    "ISATAP, public prefix, universal": lambda ip: f"2606:4700::200:5efe:{ip}",
    "ISATAP, link-local": lambda ip: f"fe80::5efe:{ip}",
}
"""IPv6 addresses that end at an IPv4 address."""

BY_HAND: Final = (
    # schemes
    *(
        "//127.0.0.1/",
        "127.0.0.1",
        "http://127.0.0.1/",
        "ftp://media.example/",
        "file:///etc/passwd",
        "file://localhost/",
    ),
    *(
        "gopher://127.0.0.1:6379/_INFO",
        "dict://127.0.0.1:11211/",
        "data:image/png;base64,AA==",
        "jar:https://media.example!/",
    ),
    *(
        "ws://media.example/",
        "unix:/run/docker.sock",
        "https+unix://media.example/",
        "javascript:alert(1)",
        "",
        " ",
        "https:",
    ),
    *(
        "https:127.0.0.1",
        "https:/127.0.0.1/",
        "https:///127.0.0.1/",
        "https://",
        "https:///",
        "https://?",
        "https://#",
        "https://:443/",
    ),
    # users
    *("https://user@media.example/", "https://:word@media.example/", "https://a:b@media.example/"),
    *("https://127.0.0.1:443@media.example/", "https://media.example@media.example:443/", "https://a@b@127.0.0.1/"),
    *("https://%75ser@media.example/", "https://media.example:443:80/", "https://media.example#@127.0.0.1:x/\n"),
    # ports
    *(
        "https://media.example:0/",
        "https://media.example:22/",
        "https://media.example:80/",
        "https://media.example:8443/",
    ),
    *("https://media.example:65536/", "https://media.example:-443/", "https://media.example:4 43/"),
    *("https://media.example:0x1bb/", "https://8.8.8.8:6379/", "https://[2606:4700::1]:22/"),
    *("http://media.example/", "http://media.example:443/", "http://8.8.8.8/", "HTTP://MEDIA.EXAMPLE/"),
    # IPv6 by hand
    *("https://[::]/", "https://[::1]/", "https://[::0001]/", "https://[0:0:0:0:0:0:0:1]/", "https://[0000::1]:443/"),
    *(
        "https://[::1%25lo]/",
        "https://[::1%lo]/",
        "https://[fe80::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
    ),
    *(
        "https://[2606:4700::1%25eth0]/",
        "https://[fd00:ec2::254]/",
        "https://[fc00::1]/",
        "https://[fec0::1]/",
        "https://[ff02::1]/",
    ),
    *("https://[2001:db8::1]/", "https://[100::1]/", "https://[2001::1]/", "https://[3fff::1]/", "https://[5f00::1]/"),
    *(
        "https://[::8.8.8.8]/",
        "https://[64:ff9b::8.8.8.8]/",
        "https://[2002:808:808::1]/",
        "https://[::ffff:0:8.8.8.8]/",
    ),
    *(
        "https://[v1.fe80::a]/",
        "https://[::1/",
        "https://::1]/",
        "https://::1/",
        "https://[[::1]]/",
        "https://[]/",
        "https://[::1]x/",
    ),
    *(
        "https://[::1].example.com/",
        "https://[:: 1]/",
        "https://[::1\\]/",
        "https://[::ffff:127.1]/",
        "https://[::ffff:0x7f.0.0.1]/",
    ),
    *("https://[1:2:3:4:5:6:7:8:9]/", "https://[::ffff:256.0.0.1]/", "https://[::1]\t/"),
    # hosts that are none
    *(
        "https://media.example\n/",
        "https://media.example\r\nHost: x/",
        "https://media\x00.example/",
        "https://media%00.example/",
    ),
    *(
        "https://media.example%2f@127.0.0.1/",
        "https://media.example%5c/",
        "https://media%2eexample/",
        "https://me dia.example/",
    ),
    *(
        "https://media.example;127.0.0.1/",
        "https://media.example,127.0.0.1/",
        "https://*.example/",
        "https://$(id).example/",
    ),
    *(
        "https://media.example\\127.0.0.1/",
        "https://<media>.example/",
        "https://media.example|x/",
        "https://{media}.example/",
    ),
    *(
        "https://0/",
        "https://0x0/",
        "https://00/",
        "https://0x/",
        "https://1/",
        "https://127/",
        "https://4294967295/",
        "https://1.1/",
    ),
    *(
        "https://8.8.8.8./",
        "https://134744072/",
        "https://8.8.2056/",
        "https://0x8.8.8.8/",
        "https://010.8.8.8/",
        "https://１.1.1.1/",
    ),
    *("https://⑯⑨.254.169.254/", "https://①②⑦.⓪.⓪.①/", "https://127．1/", "https://0x7f。1/"),
    *(
        "https://Ｌocalhost/",
        "https://ⓁⓄⒸⒶⓁⒽⓄⓈⓉ/",
        "https://media..example/",
        "https://.media.example/",
        "https://../",
        "https://./",
    ),
)
"""Everything else that is refused as it is written."""

TRIED: Final = (
    *("https://media.example/a.jpg", "https://media.example:443/", "HTTPS://MEDIA.EXAMPLE/", "https://media.example./"),
    *(
        "https://media.example/?u=https://127.0.0.1/",
        "https://media.example/#@127.0.0.1/",
        "https://media.example/@127.0.0.1",
    ),
    *(
        "https://media.example/%2e%2e/%00",
        "https://media.example?x@127.0.0.1",
        "https://bücher.example/",
        "https://xn--bcher-kva.example/",
    ),
    *("https://8.8.8.8/", "https://1.1.1.1:443/", "https://[2606:4700::1111]/", "https://[2001:4860:4860::8888]:443/"),
    *("https://[::ffff:8.8.8.8]/", "https://[2606:4700::5efe:8.8.8.8]/", "https://172.15.0.1/", "https://172.32.0.1/"),
    # Names: what they resolve to decides.
    *(
        "https://localhost/",
        "https://localhost.localdomain/",
        "https://127.0.0.1.nip.io/",
        "https://metadata.google.internal/",
    ),
    *(
        "https://7f000001.example/",
        "https://127-0-0-1.example/",
        "https://0x7f.example/",
        "https://a/",
        "https://media_1.example/",
    ),
    # Read in one way by everybody: no user, and port 443.
    *(
        "https://localhost。/",
        "https://@media.example/",
        "https://media.example:+443/",
        "https://media.example:４４３/",
    ),
)
"""May be tried; connecting decides about names."""

ANSWERS: Final[Mapping[tuple[str, ...], bool]] = {
    # what a name resolves to: whether the name is reached
    ("8.8.8.8",): True,
    ("8.8.8.8", "1.1.1.1"): True,
    ("8.8.8.8", "2606:4700::1111"): True,
    ("::ffff:8.8.8.8",): True,
    ("127.0.0.1",): False,
    ("8.8.8.8", "127.0.0.1"): False,
    ("127.0.0.1", "8.8.8.8"): False,
    ("8.8.8.8", "1.1.1.1", "9.9.9.9", "169.254.169.254"): False,
    ("2606:4700::1111", "10.0.0.5"): False,
    ("8.8.8.8", "::1"): False,
    ("8.8.8.8", "::ffff:10.0.0.5"): False,
    ("8.8.8.8", "64:ff9b::7f00:1"): False,
    ("8.8.8.8", "64:ff9b::808:808"): False,
    ("8.8.8.8", "2002:a00:5::1"): False,
    ("8.8.8.8", "2606:4700::5efe:a00:5"): False,
    ("8.8.8.8", "fe80::1"): False,
    ("8.8.8.8", "fd00:ec2::254"): False,
    ("8.8.8.8", "0.0.0.0"): False,
    ("0.0.0.0",): False,
    ("::",): False,
    ("8.8.8.8", "255.255.255.255"): False,
    ("8.8.8.8", "224.0.0.251"): False,
    ("168.63.129.16",): False,
}


def _spelled() -> dict[str, str]:
    ipv4 = {f"{ip}, {name}": f"https://{spell(ip)}/a.jpg" for name, spell in IPV4.items() for ip in INSIDE}
    ipv6 = {f"{ip}, {name}": f"https://[{spell(ip)}]/a.jpg" for name, spell in IPV6.items() for ip in INSIDE}
    return ipv4 | ipv6


REFUSED: Final[Mapping[str, str]] = _spelled() | {repr(url): url for url in BY_HAND}
"""What it is: the URL."""
