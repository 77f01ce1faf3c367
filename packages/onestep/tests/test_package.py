import subprocess
import sys

import onestep_diffusion as osd


def test_importing_the_package_loads_no_framework():
    code = "import sys, onestep_diffusion; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names_are_attribute_errors():
    assert not hasattr(osd, "nothing")
    assert issubclass(osd.ConfigError, ValueError)
