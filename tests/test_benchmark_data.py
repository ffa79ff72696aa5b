"""The measurement of loading, on little."""

from benchmark.data import main


def test_it_measures_every_way_of_loading(tmp_path, capsys):
    main(["--quick", "--workers", "0", "--output", str(tmp_path)])
    text = (tmp_path / "data.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.count("|") == 3]
    measured = {name.strip(): value for name, value in rows}
    for name in ("rendered", "drawn", "in rooms, with noise", "four microphones"):
        assert float(measured[name]) > 0
    assert float(measured["draws a second"]) > 0
