"""What is imported when: Prefect reads its settings as it is imported, and the command line must answer at once."""

import subprocess
import sys


def test_prefect_is_imported_after_its_server_is_known() -> None:
    """Else a flow would start a server of Prefect's own beside ours, and nobody would end it."""
    modules = "flows.cli, flows.grid, flows.run, flows.serve, flows.cli.tables, flows.cli.status"
    code = f"import sys, {modules}; sys.exit(bool({{'prefect', 'torch', 'pandas'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
