"""Shared by the tests: no network, and a tokenizer and a model small enough to make in a second."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random

import pytest

from bezoar_utils.miniature import corpus, pretrain, world
from bezoar_utils.run import WAITING

os.environ |= WAITING  # before torch; beside other work a step of `tiny` took 1.16 s without, 0.03 s with it


def pytest_collection_modifyitems(config, items):
    for marker in ("slow", "gpu", "paid", "index"):
        if marker not in (config.getoption("-m") or ""):
            for item in items:
                if marker in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"{marker}: run with `pytest -m {marker}`"))


@pytest.fixture(scope="session")
def small_world():
    return world.build_world(seed=3, n_people=8)


@pytest.fixture(scope="session")
def tokenizer(small_world):
    texts = corpus.base_text(small_world, 200, random.Random(1))
    return pretrain.train_tokenizer(small_world, texts, pretrain.study_prompts(small_world, 100, random.Random(2)), 768)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    from bezoar_utils.training import models

    models.prepare_torch(threads=1, seed=0)
    folder = tmp_path_factory.mktemp("model")
    models.save_model(pretrain.new_model(tokenizer, hidden=64, layers=2, heads=1), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def quantisation():
    return {"type": "nf4", "double": True, "compute_dtype": "auto"}


@pytest.fixture(scope="session")
def lora():
    return {"r": 16, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj"]}


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """`use_hub(address)`: huggingface_hub is online, asks the server at that address, and keeps what it gets for one test."""
    from huggingface_hub import constants

    def use(address: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")

    return use
