"""The process of our own Prefect server; it ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.prefect import database
from tasks import processes


def main() -> None:
    parent, port = int(sys.argv[1]), int(sys.argv[2])
    processes.end_with(parent, every=0.5, status=0)

    if not any(name.startswith("PREFECT_SERVER_DATABASE_") for name in os.environ):
        database.prepare(Path(os.environ["PREFECT_HOME"]))
        from flows.prefect import turns

        turns.take()
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # No web page gets here by a DNS name of its own. Around the app, not in it: the server's triggers ask it by a name.
    app = TrustedHostMiddleware(create_app(), allowed_hosts=["127.0.0.1", "localhost"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main()
