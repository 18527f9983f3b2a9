"""Entry point of `python -m trl_real.cli`, for launchers: `accelerate launch -m trl_real.cli select …`."""

import sys

from trl_real.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
