"""Running the command line inside a test."""

from trl_real.cli.main import main


def fails(capsys, *argv) -> str:
    assert main([str(arg) for arg in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1]
