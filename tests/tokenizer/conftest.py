"""What transformers reads of a tokenizer that we wrote."""

import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def hugging_face(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of transformers, from the file that the module's `TOKENIZER` writes."""
    import transformers

    folder = tmp_path_factory.mktemp("checkpoint")
    request.module.TOKENIZER.save(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return transformers.AutoTokenizer.from_pretrained(folder)
