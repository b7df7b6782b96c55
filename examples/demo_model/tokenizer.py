"""A tokenizer for any model: one token per byte of UTF-8, and a few special tokens."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN, BOS_TOKEN, TURN_TOKEN = "<pad>", "<eos>", "<bos>", "<turn>"
SPECIAL_TOKENS = (PAD_TOKEN, EOS_TOKEN, BOS_TOKEN, TURN_TOKEN)
PAD_ID, EOS_ID, BOS_ID, TURN_ID = range(len(SPECIAL_TOKENS))
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<turn>{{ message['role'] }}\n{{ message['content'] }}<eos>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def make_byte_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Write a byte tokenizer into directory `path`, for `AutoTokenizer` to load, and return it.

    Token `len(SPECIAL_TOKENS) + b` is byte `b`, so any text round-trips and its token ids can be
    read by eye.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        bos_token=BOS_TOKEN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(path))
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    """Return a byte-pair tokenizer without merges: every byte stays a token."""
    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocab |= {symbol: len(vocab) + byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def byte_symbols() -> list[str]:
    """Return the printable character by which the byte-level alphabet writes each byte.

    Printable Latin-1 bytes stand for themselves; the others, in order, take the characters
    from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(0x100 + hidden.index(byte)) for byte in range(256)
    ]
