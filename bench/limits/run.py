"""The limits model against measurements: the table of goals. The same as `baseload validate --data DATA_DIR`.

python bench/limits/run.py DATA_DIR
"""

import sys

from baseload.cli.validate import validate

if __name__ == "__main__":
    validate(data=sys.argv[1] if len(sys.argv) > 1 else "", seed=1, only="", as_json=False)
