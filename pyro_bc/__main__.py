"""``python -m pyro_bc``."""

from .app.cli import main

raise SystemExit(main())
