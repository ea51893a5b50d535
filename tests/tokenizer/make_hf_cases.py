#!/usr/bin/env python3
"""Makes hf_cases.json: what Hugging Face's tokenizer answers to calls that the tests here repeat.

    python make_hf_cases.py            writes hf_cases.json beside this script

Pinned: transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6. No torch is needed.
"""

import json, random, warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy as np, tokenizers, transformers
from tokenizers import decoders
from transformers import AutoTokenizer, TextStreamer

transformers.logging.set_verbosity_error()
HERE = Path(__file__).resolve().parent
MODEL = str(HERE.parent.parent / "models" / "bamba-wordnet-8m")
R = random.Random(20240917)
WORDS = "a small dog is to run photosynthesis It's I'LL 12345 3.14 CamelCase snake_case tabs\there two  spaces".split(
    " "
)
ODD = list("é你好😀한ñ \n\t\u00a0\u2003\ufeff\u200b\u0301½²٣\"'’…—<>|{}") + [
    "👩‍👧",
    "🇩🇪",
    "\r\n",
    "\n\n",
]
SPECIAL = ["<|pad|>", "<|begin_of_text|>", "<|end_of_text|>"]


def text(n=6):
    parts = [
        R.choice([R.choice(WORDS) + " ", R.choice(WORDS), R.choice(ODD), R.choice(ODD + SPECIAL)])
        for _ in range(R.randrange(n))
    ]
    return "".join(parts)


def plain(value):
    return value.tolist() if hasattr(value, "tolist") else value


def calls(tok, count):
    tok.model_max_length = 24
    maybe = lambda p, name, *values: {name: R.choice(values)} if R.random() < p else {}
    for _ in range(count):
        batch = R.random() < 0.5
        texts = [text() for _ in range(R.randrange(1, 4))] if batch else text()
        options = {
            **(
                dict(text_pair=[text() for _ in texts] if batch else text())
                if R.random() < 0.35
                else {}
            ),
            **maybe(0.3, "add_special_tokens", True, False),
            **maybe(0.6, "padding", True, False, "longest", "max_length", "do_not_pad"),
            **maybe(
                0.6,
                "truncation",
                True,
                False,
                "longest_first",
                "only_first",
                "only_second",
                "do_not_truncate",
            ),
            **maybe(0.6, "max_length", 2, 3, 4, 5, 6, 7, 8, 12, 16),
            **maybe(0.2, "pad_to_multiple_of", 1, 2, 3, 8),
            **maybe(0.4, "padding_side", "left", "right"),
            **maybe(0.3, "return_token_type_ids", True, False),
            **maybe(0.1, "return_attention_mask", True, False),
            **maybe(0.2, "return_special_tokens_mask", True),
            **maybe(0.2, "split_special_tokens", True),
        }
        tok.truncation_side = side = R.choice(["right", "left"])
        try:
            result = {name: plain(value) for name, value in tok(texts, **options).items()}
        except Exception as error:
            result = dict(error=str(error)[:80])
        tok.truncation_side = "right"
        yield dict(text=texts, options=options, truncation_side=side, result=result)


class Pieces(TextStreamer):
    def on_finalized_text(self, text, stream_end=False):
        self.pieces = getattr(self, "pieces", []) + ([text] if text else [])


def decodes(tok, count):
    for i in range(count):
        if i % 3 == 0:
            ids = [R.randrange(len(tok)) for _ in range(R.randrange(12))]
        elif i % 3 == 1:
            ids = [R.randrange(260) for _ in range(R.randrange(12))]
        else:
            ids = tok(text(9)).input_ids
        streamer = Pieces(tok)
        for id in ids:
            streamer.put(np.array([id]))
        streamer.end()
        yield dict(
            ids=ids,
            decoded=tok.decode(ids),
            skip=tok.decode(ids, skip_special_tokens=True),
            pieces=getattr(streamer, "pieces", []),
        )


LOADS = [
    {},
    dict(add_bos_token=False),
    dict(add_bos_token=True),
    dict(add_eos_token=True),
    dict(add_bos_token=True, add_eos_token=True),
    dict(pad_token="[PAD]"),
    dict(bos_token="<s>", add_bos_token=True),
    dict(extra_special_tokens=["<|im_start|>", " hello"]),
    dict(extra_special_tokens=dict(image_token="<img>")),
    dict(padding_side="left", truncation_side="left"),
    dict(model_max_length=5),
    dict(split_special_tokens=True),
    dict(unk_token="a"),
    dict(eos_token="dog"),
    dict(clean_up_tokenization_spaces=True),
]


def loads():
    names = [
        "vocab_size",
        "all_special_tokens",
        "all_special_ids",
        "special_tokens_map",
        "bos_token",
        "bos_token_id",
        "eos_token_id",
        "pad_token",
        "pad_token_id",
        "unk_token_id",
        "padding_side",
        "truncation_side",
        "model_max_length",
        "extra_special_tokens",
        "add_bos_token",
        "add_eos_token",
    ]
    probe = "<|begin_of_text|>a dog<s> hello<img>[PAD] <|im_start|> dog , is"
    for options in LOADS:
        tok = AutoTokenizer.from_pretrained(MODEL, **options)
        yield dict(
            options=options,
            properties={name: getattr(tok, name) for name in names} | dict(length=len(tok)),
            probe=probe,
            ids=tok(probe).input_ids,
            pair=tok(probe, "b").input_ids,
            truncated=tok(probe, truncation=True).input_ids,
            skip=tok.decode(tok(probe).input_ids, skip_special_tokens=True),
            counts=[tok.num_special_tokens_to_add(), tok.num_special_tokens_to_add(True)],
        )


def step_cases():
    D = decoders
    llama = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    metaspace = ["▁▁a", "▁dog", "▁", "is", "▁.", "▁n't", "▁a", "b"]
    kinds = [
        (
            llama,
            ["▁a", "<0xE4>", "<0xBD>", "<0xA0>", "▁b", "<0xE4>", "<0xBD>", "c", "<0x41>", "<0xFF>"],
        ),
        (llama, ["▁", "▁", "x"]),
        (llama, ["<0xF0>", "<0x9F>"]),
        (
            D.ByteLevel(),
            [
                "ĠHello",
                "Ġ",
                "ä",
                "½",
                "Ġx",
                "ä",
                "½",
                "ł",
                "a<b c>",
                "你",
                "é",
                "<|end|>",
                "ðŁ",
                "ĺ",
                "Ģ",
            ],
        ),
        (D.Metaspace(), metaspace),
        (D.Metaspace(prepend_scheme="never"), metaspace),
        (D.WordPiece(), ["do", "n't", "##s", ".", "a", "##b", "'", "s"]),
        (D.WordPiece(cleanup=False), ["do", "##x", "."]),
        (D.BPEDecoder(), ["hel", "lo</w>", "wor", "ld</w>"]),
        (D.CTC(), ["<pad>", "h", "h", "e", "l", "l", "<pad>", "l", "o", "|", "|", "a"]),
        (D.Sequence([D.Metaspace(), D.Strip("x", 1, 2)]), ["▁xxaxxx", "▁x", "ax"]),
        (D.Sequence([D.Fuse(), D.Strip("_", 2, 1)]), ["_", "_", "_a", "_", "_"]),
        (D.Sequence([D.Fuse(), D.Replace("ab", "-")]), ["a", "b", "xa", "ba"]),
        (D.Sequence([D.ByteLevel(), D.Strip(" ", 1, 0)]), ["Ġ", "Ġa", "Ġb"]),
    ]
    for decoder, tokens in kinds:
        yield dict(
            decoder=json.loads(decoder.__getstate__()), tokens=tokens, text=decoder.decode(tokens)
        )


TOOLS = [
    dict(
        type="function",
        function=dict(
            name="get_weather",
            description="Weather of a place, in °C",
            parameters=dict(
                type="object",
                properties=dict(
                    place=dict(type="string", enum=["Köln", "東京"]), days=dict(type="integer")
                ),
                required=["place"],
            ),
        ),
    ),
    dict(
        type="function",
        function=dict(
            name="now", description="", parameters=dict(type="object", properties={}, required=[])
        ),
    ),
]
user, assistant = (lambda c: dict(role="user", content=c)), (
    lambda c, **more: dict(role="assistant", content=c, **more)
)
CHATS = [
    [user("a small dog is")],
    [dict(role="system", content=" Be brief. "), user("Hello 😀"), assistant("Hi!")],
    [user("one"), assistant("two "), user("three\n"), assistant("  four 你好")],
    [
        user(
            [
                dict(type="text", text="part one"),
                dict(type="image"),
                dict(type="text", text=" part two"),
            ]
        ),
        assistant("ok"),
    ],
    [
        user("weather?"),
        assistant(
            None,
            tool_calls=[
                dict(
                    type="function",
                    function=dict(name="get_weather", arguments=dict(place="東京", days=2, x=1.5)),
                )
            ],
            reasoning="\nhm\n",
        ),
        dict(role="tool", name="get_weather", content=dict(z=1, é=[1, 2])),
        assistant("Sunny, 20 °C."),
        user("thanks"),
        assistant("Welcome.", thinking="t"),
    ],
    [user("<|end_of_text|> x"), assistant("<|begin_of_text|>")],
    [dict(role="alien", content="x")],
]
CHAT_OPTIONS = [
    dict(add_generation_prompt=True),
    dict(tools=TOOLS, documents=[dict(title="on dogs", text=" A dog is.\n")]),
    dict(continue_final_message=True),
    dict(date_string="24 Nov 2025"),
]


def chats(tok):
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_text()
        for chat in CHATS:
            if (
                isinstance(chat[0]["content"], list)
                and path.stem != "headers"
                or chat[1:]
                and chat[1]["content"] is None
                and path.stem != "tools"
            ):
                continue
            for options in CHAT_OPTIONS:
                case = dict(template=path.stem, conversation=chat, options=options)
                try:
                    case["text"] = tok.apply_chat_template(
                        chat, chat_template=source, tokenize=False, **options
                    )
                    if "generation" in source and "continue_final_message" not in options:
                        mask = tok.apply_chat_template(
                            chat, chat_template=source, return_assistant_tokens_mask=True, **options
                        )["assistant_masks"]
                        case["mask"] = "".join(map(str, mask))
                except Exception as error:
                    case["error"] = str(error)[:60]
                yield case


if __name__ == "__main__":
    tok = AutoTokenizer.from_pretrained(MODEL)
    cases = dict(
        made_with=dict(transformers=transformers.__version__, tokenizers=tokenizers.__version__),
        calls=list(calls(tok, 140)),
        decodes=list(decodes(tok, 48)),
        loads=list(loads()),
        steps=list(step_cases()),
        chats=list(chats(tok)),
    )
    lines = ",\n".join(
        f' "{name}": '
        + (
            "[\n"
            + ",\n".join(
                "  " + json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in part
            )
            + "\n ]"
            if isinstance(part, list)
            else json.dumps(part)
        )
        for name, part in cases.items()
    )
    (HERE / "hf_cases.json").write_text("{\n" + lines + "\n}\n")
    print({name: len(part) for name, part in cases.items()})
