"""Before torch is imported: no network, and one thread, as each of several processes has one core.
A number of threads that is set later does not give the same last digits."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"
