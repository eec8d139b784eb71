"""The measurement runs. Its figures are printed, not asserted."""

from click.testing import CliRunner

from agent.stack.realtime.measure import main


def test_the_measurement_prints_its_table() -> None:
    result = CliRunner().invoke(main, ["--messages", "20", "--rate", "100", "--listeners", "2"])
    assert result.exit_code == 0, result.output
    assert "p99" in result.output
