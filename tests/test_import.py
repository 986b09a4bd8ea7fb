"""Importing fcgen is quick, and brings in neither torch nor a driver nor the parser."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys, time
start = time.process_time()
import fcgen
took = time.process_time() - start
print(json.dumps([took, sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'cuda', 'lark', 'rich', 'click', 'filelock'})]))
"""


def test_import_is_quick_and_light() -> None:
    runs = [json.loads(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout) for _ in range(4)]
    assert runs[0][1] == []
    assert min(took for took, _ in runs) < 0.3
