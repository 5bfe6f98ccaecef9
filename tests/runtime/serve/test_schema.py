"""The OpenAPI description against the service: schemathesis sends what the schema allows, and what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from running_service import command

from emocaliber.runtime.serve.openapi import describe
from emocaliber.runtime.serve.settings import Settings


def test_description_states_the_limits_and_every_answer() -> None:
    document = describe(Settings(max_body_bytes=12345, time_limit_s=7), "1.2.3")
    assert document["info"]["version"] == "1.2.3"
    for path in ("/v1/predict", "/v1/stream"):
        operation = document["paths"][path]["post"]
        assert "12345 bytes" in operation["description"]
        assert "7 seconds" in operation["description"]
        assert set(operation["responses"]) == {
            "200", "400", "403", "408", "413", "415", "422", "500", "503", "504"
        }  # fmt: skip


def test_a_bundle_may_say_where_it_was_fetched() -> None:
    text = json.dumps(describe(Settings(), "1.2.3"))
    names = ["name", "version", "precision", "engine"]
    fields = {name: {"type": "string"} for name in (*names, "source")}
    record = {"type": "object", "properties": fields, "required": names, "additionalProperties": False}
    # Of a prediction, and of the service's own bundle.
    assert text.count(f'"bundle": {json.dumps(record)}') == 2


@pytest.mark.slow
def test_schemathesis_finds_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    with command("--bundle", str(tiny_bundle)) as (address, process):
        # No schema can say which texts are images: data that it allows may still be refused.
        words = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--seed", "1", "--no-color"]
        line = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *words]
        line += ["--max-examples", "40", "--generation-database", "none"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout
        metrics = httpx.get(f"{address}/metrics").text
        assert 'emocaliber_requests_total{endpoint="/v1/predict",status="200"}' in metrics
        assert 'emocaliber_requests_total{endpoint="/v1/stream",status="200"}' in metrics
        assert 'status="500"' not in metrics
        assert process.poll() is None
