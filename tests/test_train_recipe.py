"""Recipes: what they mean, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from stage_sc.model import StageConfig
from stage_sc.train._recipe import Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_everything(written):
    text = """
    seed = 7
    [model]
    name = "ätlas"
    half = true
    [data]
    library_key = "section"
    [config]
    levels = [2, 4]
    learning_rate = 1e-2
    cells_per_slide = 100
    """
    config = StageConfig(levels=(2, 4), learning_rate=1e-2, cells_per_slide=100)
    assert read_recipe(written(text)) == Recipe("ätlas", config, half=True, library_key="section", seed=7)


def test_name_alone(written):
    assert read_recipe(written('[model]\nname = "a"')) == Recipe("a", StageConfig())


def test_every_field_of_the_configuration(written):
    values = {key: value for key, value in StageConfig().to_dict().items() if value is not None}
    assert len(values) > len(fields(StageConfig)) - 3
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]  # the same in JSON and TOML
    text = '[model]\nname = "a"\n[config]\n' + "\n".join(lines)
    assert read_recipe(written(text)).config == StageConfig()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_repository(path):
    assert read_recipe(path).name == path.stem


def test_there_is_a_recipe_of_the_bundled_model():
    assert "stage-v1.toml" in [path.name for path in RECIPES]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('[model]\nname = "a"\n[config]\nlearning_rat = 1', ValueError, r"\[config\].* learning_rat\. .*learning_rate"),
        ('[model]\nname = "a"\nsize = 1', ValueError, r"\[model\].* size\. Known are name, half"),
        ('[model]\nname = "a"\n[training]', ValueError, "training. Known are seed, model, data, config"),
        ('seed = 1.5\n[model]\nname = "a"', TypeError, "`seed` .* int, got 1.5"),
        ('seed = true\n[model]\nname = "a"', TypeError, "`seed` .* int, got True"),
        ('model = "a"', TypeError, "`model` .* dict"),
        ('[model]\nname = "a"\nhalf = 1', TypeError, "`half` .* bool, got 1"),
        ('[model]\nname = "a"\n[data]\nlibrary_key = ["a"]', TypeError, "`library_key` .* str"),
        ("[config]", KeyError, "no `name`"),
        ('[model]\nname = "a/b"', ValueError, "cannot .* have '/', got 'a/b'"),
        ('[model]\nname = ""', ValueError, "got ''"),
        ('[model]\nname = "a"\n[config]\nlevels = [8, 9]', ValueError, "two children"),
        ("name: a", ValueError, "cannot be read as TOML"),
    ],
)
def test_refused(written, text, error, message):
    with pytest.raises(error, match=message):
        read_recipe(written(text))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "nowhere.toml")
