import base64
import time

import pytest
import standardwebhooks

from gateway.rules import delivery

BODY = b'{"test": 2432232314}'
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"


@pytest.mark.parametrize(
    ("events", "heard"),
    [
        ((), ["completed", "failed", "cancelled"]),
        (("completed",), ["completed"]),
        (("succeeded",), ["completed"]),
        (("succeeded", "completed"), ["completed"]),
        (("failed", "cancelled"), ["failed", "cancelled"]),
        (("queued", "running", "processing"), []),
    ],
)
def test_a_client_hears_of_the_ends_that_it_asked_for(events: tuple[str, ...], heard: list[str]) -> None:
    assert [each for each in ("completed", "failed", "cancelled") if delivery.is_wanted(each, events)] == heard


def test_the_waits_grow_to_a_day_and_then_the_webhook_is_given_up() -> None:
    assert [delivery.next_delay(attempts, luck=0.5) for attempts in range(1, 10)] == [
        5.0,
        30.0,
        120.0,
        600.0,
        3600.0,
        21_600.0,
        86_400.0,
        None,
        None,
    ]


def test_a_wait_is_a_tenth_shorter_or_longer_by_luck() -> None:
    assert delivery.next_delay(2, luck=0.0) == pytest.approx(27.0)
    assert delivery.next_delay(2, luck=1.0) == pytest.approx(33.0)


@pytest.mark.parametrize(
    ("attempts", "wished_s", "delay_s"),
    [
        (1, None, 5.0),
        (1, 0.0, 5.0),
        (1, 4.0, 5.0),
        (1, 20.0, 20.0),
        (1, 31.0, 30.0),
        (2, 1e9, 120.0),
        (6, 7200.0 * 4, 28_800.0),
        (7, 1e9, 86_400.0),
        (8, 1.0, None),
    ],
)
def test_a_receivers_wish_lengthens_a_wait_up_to_the_next_one(
    attempts: int, wished_s: float | None, delay_s: float | None
) -> None:
    assert delivery.next_delay(attempts, luck=0.5, wished_s=wished_s) == delay_s


@pytest.mark.parametrize(
    ("text", "wished_s"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 60.0),
        ("Sun, 06 Nov 1994 08:40:37 GMT", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("1" * 30, None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
    ],
)
def test_a_wish_is_a_number_of_seconds_or_a_date(text: str | None, wished_s: float | None) -> None:
    assert delivery.wished_wait(text, now=784_111_717.0) == wished_s


def test_the_id_of_a_webhook_is_made_of_its_task() -> None:
    assert delivery.webhook_id("task-wg0000000000000000000000001A") == "msg_wg0000000000000000000000001A"


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("https://Hooks.Example.com/x?token=t", "hooks.example.com:443"),
        ("http://10.0.0.7/x", "10.0.0.7:80"),
        ("https://hooks.example.com:8443/x", "hooks.example.com:8443"),
        ("https://[2606:4700::1111]/x", "2606:4700::1111:443"),
        ("https://[", ""),
        ("https://hooks.example.com:99999/", ""),
        ("/x", ""),
    ],
)
def test_a_receiver_is_a_host_and_its_port(url: str, receiver: str) -> None:
    assert delivery.receiver_of(url) == receiver


def test_the_published_example_of_standard_webhooks_is_signed_alike() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert delivery.sign(secret, BODY, webhook_id=ID, timestamp=1614265330) == signature


def test_a_secret_without_the_prefix_is_the_key_as_it_is_written() -> None:
    # By `openssl dgst -sha256 -hmac hush -binary | base64` of "<id>.1614265330.<body>".
    signature = "v1,CyVCjOtga/p1bhnGx2aBxN4pSXneruddhYBmNE/2Cbw="
    assert delivery.sign("hush", BODY, webhook_id=ID, timestamp=1614265330) == signature


@pytest.mark.parametrize("secret", ["whsec_not base64", "whsec_", "whsec_abc"])
def test_a_prefixed_secret_without_a_key_signs_nothing(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        delivery.sign(secret, BODY, webhook_id=ID, timestamp=1614265330)


@pytest.mark.parametrize("key", [b"k" * 24, bytes(range(32)), b"\xff" * 64])
def test_the_reference_library_verifies_what_is_signed(key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    now = int(time.time())  # it refuses what is older than five minutes
    signature = delivery.sign(secret, BODY, webhook_id=ID, timestamp=now)
    headers = {"webhook-id": ID, "webhook-timestamp": str(now), "webhook-signature": signature}
    assert standardwebhooks.Webhook(secret).verify(BODY, headers) == {"test": 2432232314}
    for changed in ({"webhook-id": "msg_x"}, {"webhook-timestamp": str(now + 1)}):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(secret).verify(BODY, headers | changed)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(BODY + b" ", headers)
