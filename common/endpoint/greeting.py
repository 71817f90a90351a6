"""The first word to a server: whether anybody answers at its address."""

from __future__ import annotations

import logging

import openai

from common.config.eyes import Endpoint
from common.endpoint.chat_endpoint import CONNECT_TIMEOUT_S, key_of
from common.errors import UserError

log = logging.getLogger("sightline")

ANSWER_TIMEOUT_S = 30.0


def greet(settings: Endpoint, key: str) -> None:
    """Ask a server for its models. A server that has no such list answers, and that is enough.

    Args:
        key: the settings' place in the config, for messages.

    Raises:
        UserError: nobody answers, or the server refuses our API key.
    """
    client = openai.OpenAI(
        base_url=settings.base_url,
        api_key=key_of(settings, key) or "none",
        max_retries=1,
        timeout=openai.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )
    with client:
        try:
            names = [model.id for model in client.models.list().data]
        except openai.APIConnectionError as error:
            # Silence, too. The cause has the address; the client says "Connection error." only.
            cause = error.__cause__ or error
            raise UserError(
                f"{key}.base_url: expected a server that speaks OpenAI's protocol at {settings.base_url}, but nobody "
                f"answers there ({cause}); start it, such as with `vllm serve`, or correct the address"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{key}.api_key_env: expected a key that {settings.base_url} takes, got status {error.status_code}; "
                "name the environment variable that holds it"
            ) from error
        # An answer of any other kind; what it means shows when it is asked.
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            return
    if names and settings.model not in names:
        log.warning(
            "%s.model: %s does not list %r, but %s",
            key,
            settings.base_url,
            settings.model,
            ", ".join(names[:10]),
        )
