"""An agent's metadata, for the operators of the proxy."""

import os
from datetime import UTC, datetime
from typing import Any

__all__ = ["agent_metadata"]


def agent_metadata(version: str, *features: str, **more: Any) -> dict[str, Any]:
    """Metadata for a registration: ``version``, ``hostname``, ``pid``, ``started_at`` (now) and ``features``.

    ``more`` is added unchanged; it must be JSON. Proxies show metadata to their operators and may log it, so it must
    not contain secrets.
    """
    return {
        "version": version,
        "hostname": os.uname().nodename,
        "pid": os.getpid(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "features": list(features),
        **more,
    }
