"""Registering, finding and choosing configs by name."""

import sys
from typing import Annotated

import pydantic
import pytest

from effarch import registry
from effarch.config import Config, UserError, load, to_yaml
from effarch.registry import Choice, configs, discover, get, names, register


@register("vanilla", kind="flavour")
class Vanilla(Config):
    scoops: int = pydantic.Field(2, gt=0)


@register("cherry", kind="flavour")
class Cherry(Config):
    stones: bool = False


class Cone(Config):
    flavour: Annotated[Config, Choice("flavour")] = Vanilla(scoops=3)


def test_registered_classes_are_found_by_name():
    assert names("flavour") == ("cherry", "vanilla")
    assert get("flavour", "cherry") is Cherry and Cherry.type_name == "cherry"
    assert configs("flavour") == {"cherry": Cherry, "vanilla": Vanilla}
    assert names("unheard of") == ()


def test_an_unknown_name_is_an_error_with_the_known_ones():
    with pytest.raises(UserError, match=r'unknown flavour "chery"; did you mean "cherry"\? \(known: cherry, vanilla\)'):
        get("flavour", "chery")


def test_names_and_classes_are_registered_once():
    with pytest.raises(ValueError, match='flavour "cherry": expected a new name, got that of .*Cherry'):
        register("cherry", kind="flavour")(type("Other", (Config,), {}))
    with pytest.raises(ValueError, match='expected a class without a name, got one registered as "cherry"'):
        register("red", kind="flavour")(Cherry)
    with pytest.raises(ValueError, match='expected no field "type"'):
        register("typed", kind="flavour")(pydantic.create_model("Typed", __base__=Config, type=(str, "x")))
    assert names("flavour") == ("cherry", "vanilla")


@pytest.mark.parametrize(
    "value, expected",
    [
        (Cherry(stones=True), Cherry(stones=True)),
        ("cherry", Cherry()),
        ({"type": "cherry", "stones": True}, Cherry(stones=True)),
        ("vanilla", Vanilla()),
        ({}, Vanilla(scoops=3)),  # no type: the default, changed where the mapping says so
        ({"scoops": 5}, Vanilla(scoops=5)),
    ],
)
def test_a_choice_takes_configs_names_and_mappings(value, expected):
    assert Cone.model_validate({"flavour": value}).flavour == expected


def test_a_choice_is_written_with_its_type_first_and_read_back(tmp_path):
    cone = Cone(flavour=Cherry(stones=True))
    path = tmp_path / "cone.yaml"
    path.write_text(to_yaml(cone))
    assert path.read_text() == "flavour:\n  type: cherry\n  stones: true\n"
    assert load(Cone, path) == cone and hash(load(Cone, path)) == hash(cone)


def test_a_choice_refuses_configs_of_no_or_another_kind():
    class Plain(Config):
        pass

    class Derived(Cherry):  # inherits the name, but reading it back would give a Cherry
        pass

    for value in (Plain(), Derived(), 3):
        with pytest.raises(pydantic.ValidationError, match="expected a flavour"):
            Cone.model_validate({"flavour": value})


def test_what_registers_later_can_be_chosen(monkeypatch):
    monkeypatch.setattr(registry, "_classes", {**registry._classes, "flavour": configs("flavour")})
    with pytest.raises(UserError, match='flavour: unknown flavour "mint"'):
        load(Cone, overrides=["flavour=mint"])
    mint = register("mint", kind="flavour")(type("Mint", (Config,), {"__module__": __name__}))
    assert type(load(Cone, overrides=["flavour=mint"]).flavour) is mint


def test_a_default_may_be_a_name():
    class Cup(Config):
        flavour: Annotated[Config, Choice("flavour")] = "vanilla"  # ty: ignore

    assert Cup().flavour == Vanilla()
    assert load(Cup, overrides=["flavour.scoops=7"]).flavour == Vanilla(scoops=7)


def test_discover_imports_every_module_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "sweets"
    package.mkdir()
    (package / "__init__.py").write_text("from effarch.registry import discover\n\ndiscover(__name__)\n")
    for name in ("toffee", "fudge"):
        (package / f"{name}.py").write_text(
            "from effarch.config import Config\nfrom effarch.registry import register\n\n"
            f"@register('{name}', kind='sweet')\nclass Sweet(Config):\n    pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_classes", {})
    __import__("sweets")
    assert names("sweet") == ("fudge", "toffee")
    discover("sweets")  # again: nothing is imported twice
    for module in [name for name in sys.modules if name.split(".")[0] == "sweets"]:
        monkeypatch.delitem(sys.modules, module)
