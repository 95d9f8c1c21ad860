"""Wave Gateway: spend policy, a cap that holds, a result cache and a mirror in front of the Wave task API."""

from typing import Final

VERSION: Final = "0.1.0"
