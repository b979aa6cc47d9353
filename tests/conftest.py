"""Shapes of `workers.methods` and `workers.nn` are checked while tests run; Ray reports no usage."""

import os

from jaxtyping import install_import_hook

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"  # tests share the cores already; torch's threads would wait for one another
os.environ["RAYDISSECT_TESTS"] = str(os.getpid())  # by which a test tells its processes from those of others beside it
install_import_hook(["workers.methods", "workers.nn"], "beartype.beartype")
