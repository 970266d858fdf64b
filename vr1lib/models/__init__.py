import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional package, in every run anew
