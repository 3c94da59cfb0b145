"""``python -m pyro_bc``."""

from .cli import main

raise SystemExit(main())
