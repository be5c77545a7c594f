"""``python -m dialout``: the demonstration agent, see ``dialout.agent.demo``."""

import sys

from dialout.agent.demo import main

if __name__ == "__main__":
    sys.exit(main())
