"""Templates: ids are those of `apply_chat_template`, two BOS at the start are refused where they
are two, rows are named.
"""

import datetime
import inspect
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wind.config.prompts import PromptsConfig
from wind.config.rewards import ClassifierRewardConfig
from wind.config.templates import TAKEN
from wind.errors import ConfigError, InputError
from wind.models.templates import Template

DAY = datetime.date(2026, 1, 2)
ASKED = [{"role": "user", "content": "1+1="}]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def bos_is_eos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def where(row: int) -> str:
    return f"row {row}"


SHAPES = [
    "{{ bos_token }}{% for m in messages %}<u>{{ m.content }}{% endfor %}",
    "{% for m in messages %}<u>{{ m.content }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{{ bos_token }}{{ m.role }} {{ m.content }}{{ bos_token }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% generation %}{{ m.role }}{% endgeneration %}{% "
    "endfor %}",
    "{{ strftime_now('%d %m') }}{{ messages[-1].content }}",
    "{{ messages[-1].content }}{% if add_generation_prompt %}<a>{% if not thinking %} ..{% endif "
    "%}{% endif %}",
    "{{ messages | tojson }}{{ tools is none }}",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arguments", [{}, {"thinking": True}])
def test_ids_are_those_of_apply_chat_template(
    tokenizer: Any, shape: str, arguments: dict[str, Any]
) -> None:
    chats: list[list[dict[str, Any]]] = [
        ASKED,
        [
            {"role": "system", "content": "", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ],
    ]
    template = Template(tokenizer, shape, DAY, arguments)
    texts = template.texts(chats, where, add_generation_prompt=True)
    for chat, ids in zip(chats, template.token_ids(texts)["input_ids"], strict=True):
        told = {
            "chat_template": shape,
            "add_generation_prompt": True,
            "strftime_now": DAY.strftime,
            **arguments,
        }
        assert ids == tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **told)


def test_of_several_templates_the_default_is_taken(tokenizer: Any) -> None:
    tokenizer.chat_template = {"tool_use": "<u>", "default": "<a>{{ messages[0].content }}"}
    template = Template(tokenizer, "chat", DAY)
    assert (
        template.texts([ASKED], where)
        == ["<a>1+1="]
        == [tokenizer.apply_chat_template(ASKED, tokenize=False)]
    )
    tokenizer.chat_template = {"tool_use": "<u>", "rag": "<u>"}
    with pytest.raises(
        ConfigError,
        match=r"^the tokenizer has no chat template named default, only tool_use, rag: set prompts",
    ):
        Template(tokenizer, "chat", DAY).texts([ASKED], where)


def test_two_bos_are_refused(tokenizer: Any) -> None:
    template = Template(
        tokenizer, "{{ bos_token }}{{ messages[0].content }}", DAY, setting="reward.template"
    )
    template.check(ASKED, [1, 6, 1], "row 3")
    with pytest.raises(
        InputError,
        match=r"^row 3 begins with two BOS tokens \(<s>\): take one out of the row or "
        r"reward.template$",
    ):
        template.check(ASKED, [1, 1, 6], "row 3")


def test_where_bos_is_eos_the_template_tells_whether_it_is_doubled(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": ""}, *ASKED]
    turns = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    for shape in ("{{ bos_token }}" + turns, "{{ bos_token }}{{ bos_token }}" + turns):
        template = Template(bos_is_eos(tokenizer), shape, DAY)
        ids = template.token_ids(template.texts([chat], where))["input_ids"][0]
        assert ids[:2] == [2, 2]
        if shape.count("bos_token") == 1:
            template.check(chat, ids, "row 0")  # BOS, and the end of an empty system message
        else:
            with pytest.raises(InputError, match=r"^row 0 begins with two BOS tokens \(</s>\)"):
                template.check(chat, ids, "row 0")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise_exception('no\n  system')", "no system"),
        ("1 // 0", "integer division or modulo by zero"),
        ("m.content + 1", 'can only concatenate str (not "int") to str'),
        ("m.nothing.further", "'dict object' has no attribute 'nothing'"),
        (
            "range(10 ** 9)",
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
        ),
        ("[][1].x", "list object has no element 1"),
    ],
)
def test_the_row_that_a_template_refuses_is_named(tokenizer: Any, fault: str, said: str) -> None:
    shape = (
        "{% for m in messages %}{% if m.content == '3' %}{{ "
        + fault
        + " }}{% endif %}{{ m.content }}{% endfor %}"
    )
    chats = [[{"role": "user", "content": str(number)}] for number in range(6)]
    with pytest.raises(InputError) as error:
        Template(tokenizer, shape, DAY).texts(chats, where)
    assert (
        str(error.value)
        == f"row 3 does not fit prompts.template: {said}; change the row or the template"
    )


def test_what_is_passed_anyway_is_no_argument() -> None:
    taken = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {
        "kwargs"
    }
    assert taken <= set(TAKEN)
    for name in TAKEN:
        with pytest.raises(
            ValidationError,
            match=f"{name} is no argument of a template but of what calls it: remove it",
        ):
            PromptsConfig(source="p.jsonl", template_arguments={name: 1})
        with pytest.raises(ValidationError, match="is no argument of a template"):
            ClassifierRewardConfig(kind="classifier", path="m", template_arguments={name: 1})


@pytest.mark.parametrize("name", ["self", "messages", "conversations"])
def test_those_names_would_not_get_through(tokenizer: Any, name: str) -> None:
    """Beyond the parameters of `apply_chat_template`: names that transformers gives away further
    down.
    """
    with pytest.raises(TypeError):
        tokenizer.apply_chat_template(ASKED, tokenize=False, **{name: 1})


def test_arguments_are_json() -> None:
    arguments = {"enable_thinking": False, "depth": 1.5, "names": ["a", None], "more": {"x": {}}}
    assert (
        PromptsConfig(source="p.jsonl", template_arguments=arguments).template_arguments
        == arguments
    )
    for wrong in (float("nan"), {1, 2}, DAY):
        with pytest.raises(ValidationError):
            PromptsConfig(source="p.jsonl", template_arguments={"x": wrong})


BOMBS = {
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop within itself": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "signs": "{{ " + "-" * 20000 + "1 }}",
    "conditions": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "loops": "{% for m in messages %}" * 30 + "{% endfor %}" * 30,
    "filters": "{{ 1" + "|string" * 5000 + " }}",
    "a list in lists": "{% set n = namespace(a=[]) %}{% for i in range(3000) %}{% set n.a = "
    "[n.a] %}{% endfor %}{{ n.a|tojson }}",
    "memory": "{{ messages[0].content * 100000000000 }}",
    "a range": "{{ range(1000000) | list }}",
}
ATTEMPTS = {
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a global": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os.getcwd() }}",
    "a change": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("name", [*BOMBS, *ATTEMPTS])
def test_a_template_is_bounded_and_reaches_nothing(tokenizer: Any, name: str) -> None:
    template = Template(tokenizer, (BOMBS | ATTEMPTS)[name], DAY)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    # a machine of a size that is known
    resource.setrlimit(resource.RLIMIT_DATA, (taken + 2**30, hard))
    try:
        with pytest.raises((InputError, ConfigError)) as raised:
            template.texts([ASKED], where)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert "\n" not in str(raised.value)
    assert "prompts.template" in str(raised.value)


def test_no_template_of_others_is_rendered_elsewhere() -> None:
    """The pages of the data checks are made of templates of ours; all others go through
    transformers' sandbox.
    """
    root = Path(__file__).resolve().parents[2]
    files = [
        path
        for part in ("wind", "tasks", "flows", "data_checks")
        for path in (root / part).rglob("*.py")
    ]
    found = [
        path.relative_to(root).as_posix()
        for path in files
        if re.search(r"\bjinja2\b(?!.*Error)", path.read_text())
    ]
    assert sorted(found) == [
        "data_checks/docs.py",
        "flows/pages/__init__.py",  # templates of ours, which escape
        "wind/rewards/questions.py",  # a judge's, in a sandbox
    ]
