"""The table of short flags: which config key each of them stands for."""

from __future__ import annotations

from common.config.flags import Flag

_OUT = Flag("--out", "generate.out", "folder of the pair set", "DIR")
_PROMPTS = Flag(
    "--prompts",
    "data.prompts.path",
    "file or folder of prompts with reference answers; default: shapes world",
    "PATH",
    implies=(("data.prompts.kind", "file"),),
)
_COUNT = Flag(
    "--count",
    "data.prompts.count",
    "how many scenes, or rows of --prompts; default 1000, or all",
    "N",
    otherwise="data.prompts.rows",
)

BDHS_FLAGS = (
    _OUT,
    Flag("--model", "model.path", "policy, a Hugging Face folder; default: the shapes world's"),
    _PROMPTS,
    _COUNT,
    Flag("--seed", "run.seed", "of scenes, masks, cuts and samples"),
    Flag("--variant", "rollout.bdhs.variant", "attention (default), noise or unguided"),
    Flag("--rho", "rollout.bdhs.rho", "share of image tokens hidden; must fit the model"),
    Flag("--attempts", "rollout.bdhs.max_attempts", "at most so many; the last one is unguided"),
    Flag(
        "--threshold",
        "rollout.bdhs.similarity_threshold",
        "accept rejected answers less similar than this",
    ),
    Flag("--temperature", "rollout.bdhs.temperature", "of sampling"),
    Flag(
        "--similarity",
        "rollout.bdhs.similarity",
        "lexical (default), or a sentence-transformers model",
    ),
    Flag("--workers", "rollout.num_workers", "rollout workers"),
)  # fmt: skip

POVID_FLAGS = (
    _OUT,
    Flag(
        "--endpoint",
        "povid.endpoint.base_url",
        "OpenAI-compatible, such as http://localhost:8000/v1",
        "URL",
    ),
    Flag("--model-name", "povid.endpoint.model", "which of the endpoint's models", "NAME"),
    Flag(
        "--corrupter",
        "povid.corrupter",
        "instead of an endpoint: the rules of the shapes world",
        "rules",
    ),
    _PROMPTS,
    _COUNT,
    Flag("--seed", "run.seed", "of scenes, kinds and rules"),
    Flag(
        "--kinds",
        "povid.kinds",
        "some of entity,attribute,relation,reasoning; each prompt draws one that suits",
    ),
    Flag("--every-kind", "povid.every_kind", "a pair of every kind that suits the prompt", switch=True),
    Flag(
        "--max-length-ratio",
        "povid.max_length_ratio",
        "refuse answers so many times longer or shorter",
    ),
    Flag(
        "--api-key-env",
        "povid.endpoint.api_key_env",
        "environment variable of the key; default OPENAI_API_KEY",
        "NAME",
    ),
    Flag("--send-image", "povid.endpoint.send_image", "show the image to the endpoint's model", switch=True),
    Flag("--temperature", "povid.endpoint.temperature", "of sampling"),
    Flag("--max-tokens", "povid.endpoint.max_tokens", "of one rewritten answer"),
    Flag(
        "--max-tokens-key",
        "povid.endpoint.max_tokens_key",
        "max_tokens, or max_completion_tokens where that is what it is called",
    ),
    Flag("--concurrency", "povid.endpoint.concurrency", "requests in flight"),
    Flag("--timeout", "povid.endpoint.timeout_s", "seconds of one request"),
    Flag("--retries", "povid.endpoint.max_retries", "of a request that failed"),
    Flag("--price-in", "povid.endpoint.price_in", "per million prompt tokens"),
    Flag("--price-out", "povid.endpoint.price_out", "per million completion tokens"),
)  # fmt: skip

EVALUATE_FLAGS = (
    Flag(
        "policy",
        "evaluate.policy",
        "Hugging Face folder of the policy; --model.path DIR says the same",
        "POLICY_DIR",
        optional=True,
    ),
    Flag("--baseline", "evaluate.baseline", "policy it started from, measured first", "DIR"),
    Flag("--split", "evaluate.split", "test (default), or validation"),
    Flag(
        "--scenes",
        "evaluate.scenes",
        "scenes of every suite that has scenes; default: as many as the suite says",
        "N",
    ),
    Flag("--out", "evaluate.out", "write the scorecards as JSON", "FILE"),
    Flag("--samples", "evaluate.samples", "write an HTML page of marked answers", "FILE"),
)  # fmt: skip

JUDGE_FLAGS = (
    Flag("pairs", "test_judge.pairs", "folder of a pair set with true labels", "PAIRS_DIR"),
    Flag("--count", "test_judge.count", "judge so many pairs, evenly spread; default: all", "N"),
    Flag("--cases", "test_judge.cases", "errors shown on the page; default 48", "N"),
    Flag("--out", "test_judge.out", "write the figures as JSON", "FILE"),
    Flag("--page", "test_judge.page", "write an HTML page with the errors and their pictures", "FILE"),
)  # fmt: skip

IMPORT_FLAGS = (
    Flag("path", "import_data.path", "the published file, or the folder that holds it", "PATH"),
    Flag("--out", "import_data.out", "folder of the set to make", "DIR"),
    Flag(
        "--images",
        "import_data.images",
        "folder that image paths are below; default: the one of PATH",
        "ROOT",
    ),
    Flag("--strip-prefix", "import_data.strip_prefix", "cut this off the front of image paths", "PREFIX"),
    Flag(
        "--split",
        "import_data.split",
        "train, validation, test or all, as file names say it; default: train where there are several",
        "NAME",
    ),
    Flag("--count", "import_data.count", "read at most N rows", "N"),
)  # fmt: skip

EXPORT_FLAGS = (
    Flag("directory", "export.directory", "folder of a pair set", "DIR"),
    Flag("--out", "export.out", "folder to write", "OUT"),
)

INSPECT_FLAGS = (
    Flag("directory", "inspect.directory", "folder of a pair set (pairs.parquet, images/)", "DIR"),
    Flag("--out", "inspect.out", "page (default inspect.html); figures go beside it as .json", "FILE"),
    Flag("--count", "inspect.count", "read so many rows, evenly spread; default: all", "N"),
    Flag("--samples", "inspect.samples", "pairs shown with their images; default 24", "N"),
    Flag(
        "--policy",
        "inspect.policy",
        "also ask this policy: a Hugging Face folder, or shapes; default: none",
    ),
    Flag("--policy-count", "inspect.policy_count", "pairs that the policy reads; default 500", "N"),
    Flag("--batch", "inspect.batch", "pairs per forward of the policy; default 8", "N"),
    Flag(
        "--max-length",
        "inspect.max_length",
        "tokens, default 4096; longer pairs are counted, not measured",
        "N",
    ),
    Flag("--device", "inspect.device", "of the policy, as torch names it; default: cuda when there is one"),
)  # fmt: skip
