"""`make dashboards`: write the dashboards as JSON, for an import by hand and for provisioning.

`python -m grafana.generator FOLDER` writes them elsewhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from grafana.generator import media, spend, traffic

FOLDER: Final = Path(__file__).parent.parent


def documents() -> dict[str, str]:
    """Name of the file → its text."""
    made = {"spend": spend.dashboard(), "traffic": traffic.dashboard(), "media": media.dashboard()}
    return {f"{name}.json": _render(each) for name, each in made.items()}


def _render(each: model.Dashboard) -> str:
    return json.dumps(each, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    """Write every file into a folder."""
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
