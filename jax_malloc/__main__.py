"""`python -m jax_malloc`: see `jax_malloc.cli`."""

import sys

from jax_malloc.cli.main import main

sys.exit(main(sys.argv))
