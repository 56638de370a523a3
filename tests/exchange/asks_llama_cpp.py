"""`python asks_llama_cpp.py FILE.gguf < questions.json`: what llama.cpp makes of them, as JSON; needs llama-cpp-python.

Questions: `texts` to encode and decode, `prompt` as ids, `n_greedy` tokens to follow it.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp


def main() -> None:
    questions = json.load(sys.stdin)
    fp32 = 0  # of the cache, which is fp16 otherwise
    llama = llama_cpp.Llama(
        sys.argv[1], n_ctx=0, logits_all=True, n_threads=1, n_threads_batch=1, type_k=fp32, type_v=fp32, verbose=False
    )
    ids = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in questions["texts"]]
    prompt = questions["prompt"]
    llama.eval(prompt)
    logits = llama.scores[: len(prompt)].tolist()
    greedy = []
    for _ in range(questions["n_greedy"]):
        greedy.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(greedy[-1:])
    json.dump(
        {
            "version": llama_cpp.__version__,
            "ids": ids,
            "texts": [decoded(llama, one) for one in ids],
            "begun": llama.tokenize(b"a", add_bos=True, special=False),
            "logits": logits,
            "greedy": greedy,
            "n_ctx": llama.n_ctx(),
            "bos": llama.token_bos(),
            "eos": llama.token_eos(),
        },
        sys.stdout,
    )


def decoded(llama: llama_cpp.Llama, ids: list[int]) -> str:
    buffer = ctypes.create_string_buffer(16 * len(ids) + 64)
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    size = llama_cpp.llama_detokenize(vocabulary, tokens, len(ids), buffer, len(buffer), False, False)
    assert size >= 0, "the buffer is too small"
    return buffer.raw[:size].decode(errors="replace")


if __name__ == "__main__":
    main()
