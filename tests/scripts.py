"""Scripts that shells run."""

import shutil
import subprocess


def check_shell(script, tmp_path):
    path = tmp_path / "script.sh"
    path.write_text(script)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--severity=warning", path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
