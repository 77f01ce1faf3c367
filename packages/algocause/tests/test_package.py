import subprocess
import sys

import algocause


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, algocause; print(sorted({'numpy', 'numba', 'networkx', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_there_is_a_version():
    assert algocause.__version__.count(".") == 2
