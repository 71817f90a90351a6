"""The training side: preference losses, log-probs, batches, engines, and the learner that ties them."""

import logging


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return "from kernels-community" not in record.getMessage()


# peft imports bitsandbytes, which looks for a 4-bit kernel in the package `kernels` on CPUs with
# AVX512-BF16 and warns that the package is missing. QLoRA does not use that kernel even where it
# is installed (see learner.model.quantized), so there is nothing for a user to do about it.
# The filter stands here because it must be there before bitsandbytes is first imported in this room.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_worth_reading)
