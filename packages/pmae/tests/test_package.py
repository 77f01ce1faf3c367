import subprocess
import sys

import pmae


def test_importing_the_package_loads_no_framework():
    code = "import sys, pmae; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names_are_attribute_errors():
    assert not hasattr(pmae, "nothing")
    assert issubclass(pmae.ShapeError, ValueError)
    assert issubclass(pmae.BasisTooLargeError, MemoryError)
