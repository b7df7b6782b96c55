"""A model that babbles, except where it was taught what to say.

SGLang's kits ask for the capital of France and check that the answer says Paris. A random OLMo-3
(three window layers to one full) tells contexts apart well enough that a last layer can be solved
for, in seconds and without training, that answers given prompts with given texts. Each byte of an
answer then depends on every key and value behind it, so that the kits check memory as they would
with a real model.
"""

import json
from pathlib import Path

import torch
from sglang.test.kits.basic_scheduler_stress_kit import _CONCURRENT_PREFIX, _CONCURRENT_QA
from sglang.test.kits.json_constrained_kit import JSONConstrainedMixin
from sglang.test.kits.matched_stop_kit import MANY_NEW_TOKENS_PROMPT
from transformers import (
    GenerationConfig,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedTokenizerFast,
)

from examples.demo_model.tokenizer import PAD_ID, SPECIAL_TOKENS, make_byte_tokenizer
from examples.demo_model.tokenizer import VOCAB_SIZE as NUM_BYTE_TOKENS

END_ID = 2  # `matched_stop_kit` takes it for an end of text
VOCAB_SIZE = 32_000  # `radix_cache_server_kit` sends any token below it
NO_BYTES = [*range(len(SPECIAL_TOKENS)), *range(NUM_BYTE_TOKENS, VOCAB_SIZE)]
CONTEXT_LENGTH = 131_072
WINDOW = 64
WIDTH = 512  # as many answer bytes can be taught
CONFIDENCE = 20.0  # the logit of a taught byte; all others of its place get 0

CITY = '{"name": "Paris", "population": 2102650}'
PERSON = '{"name":"Ann","age":30,"city":"Rome"}'
LOG_ENTRY = "[2024-01-01T12:00:00Z] INFO: System.process - Operation end successfully"
STORY = " A fox and a crow met.\n"
CITY_PROMPT = (
    "Introduce the capital of France. Return in a JSON format. The JSON Schema is: "
    + json.dumps(JSONConstrainedMixin.json_schema)
)
SUM_PROMPT = """\
<|begin_of_text|><|start_header_id|>system<|end_header_id|>
You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>
What is 2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>
        """
PRODUCT_PROMPT = (
    "Q: What is 12 multiplied by 12? Reply with just the number.\nA: 144\n"
    "Q: What is 17 multiplied by 23? Reply with just the number.\nA:"
)

# What the kits ask, word for word, and answers that satisfy them.
COMPLETIONS = {
    "Q: What is the capital of France?\nA:": " Paris",
    "Q: What is the capital of France? Reply in one word.\nA:": " Paris\n",
    "Q: What is the capital of France? Just one word.\nA:": " Paris",
    "The capital of France is": " Paris",
    PRODUCT_PROMPT: " 391",
    "Q: The three primary colors are red, blue, and ___. Fill in the blank.\nA:": " yellow",
    "Q: Write a single sentence about a sunny day in the park.\nA:": " The sun shines on us.",
    "Briefly explain what gravity is.": " It is why apples fall.",
    "Generate a simple JSON with name, age, and city:": PERSON,
    "Generate a log entry:": LOG_ENTRY,
    CITY_PROMPT: CITY,
    MANY_NEW_TOKENS_PROMPT: STORY,
    SUM_PROMPT: "4",
} | {_CONCURRENT_PREFIX + question: f" {city}" for question, city in _CONCURRENT_QA}

HELPFUL = {"role": "system", "content": "You are a helpful AI assistant"}
CHATS = [
    ([{"role": "user", "content": "Say hi in one word."}], "Hi"),
    ([HELPFUL, {"role": "user", "content": CITY_PROMPT}], CITY),
    ([HELPFUL, {"role": "user", "content": MANY_NEW_TOKENS_PROMPT}], STORY),
    ([HELPFUL, {"role": "user", "content": "What is 2 + 2?"}], "4"),
    (
        [
            {
                "role": "system",
                "content": "You are a helpful AI assistant that gives a short answer.",
            },
            {"role": "user", "content": "What is the capital of Bulgaria?"},
        ],
        '{"city": "Sofia"}',
    ),
]


def make_taught_model(path: Path) -> Path:
    """Write the model and its tokenizer into directory ``path`` and return it."""
    model = random_model(seed=0)
    tokenizer = make_byte_tokenizer(path)
    teach(model, lessons(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=PAD_ID)
    model.save_pretrained(path)
    return path


def random_model(seed: int) -> Olmo3ForCausalLM:
    # SGLang takes 10,000 where a configuration names a base for each kind of layer.
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = Olmo3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Olmo3ForCausalLM(config).eval()


def lessons(tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) in token ids; every answer ends the text."""
    asked = [(tokenizer.encode(prompt), answer) for prompt, answer in COMPLETIONS.items()]
    for messages, answer in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked.append((tokenizer.encode(text), answer))
    return [(prompt, [*tokenizer.encode(answer), END_ID]) for prompt, answer in asked]


@torch.no_grad()
def teach(model: Olmo3ForCausalLM, lessons: list[tuple[list[int], list[int]]]) -> None:
    """Solve for the smallest last layer that answers every lesson, and says bytes elsewhere."""
    states, answers = [], []
    for prompt, answer in lessons:
        ids = torch.tensor([[*prompt, *answer]])
        states.append(model.model(ids).last_hidden_state[0, len(prompt) - 1 : -1])
        answers += answer
    rows = torch.cat(states).double()
    assert len(rows) <= WIDTH, f"{len(rows)} answer bytes, room for {WIDTH}"
    # All states share a large part; along it every token that is no byte is made unlikely.
    usual = rows.mean(0)
    weight = torch.zeros(VOCAB_SIZE, WIDTH, dtype=torch.float64)
    weight[NO_BYTES] = -CONFIDENCE * usual / usual.square().sum()
    wanted = rows @ weight.T
    wanted[torch.arange(len(rows)), torch.tensor(answers)] = CONFIDENCE
    weight += (torch.linalg.pinv(rows) @ (wanted - rows @ weight.T)).T
    model.lm_head.weight.copy_(weight)
