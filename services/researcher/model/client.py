"""One call of a model through pydantic-ai: an OpenAI-compatible or an Anthropic endpoint.

The endpoint and the key come from the operator's settings alone. The model gets no tool: the one "tool" there may be is
the form of the answer, and nothing runs when it is filled in.
"""

from typing import Any

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError, ModelTimeoutError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from services.researcher.model.capped import TooLarge, http_client
from services.researcher.model.options import Options
from services.researcher.model.prompt import Prompt, again
from services.researcher.model.reply import CallFailed, Exchange, Reply

NO_KEY = "none"  # the clients refuse an empty key; an endpoint that needs none ignores it
TOO_EARLY = (408, 409, 425, 429)  # statuses of 4xx that may pass
KEY_REFUSED = (401, 403)
_TEMPLATE = "Answer with one JSON object of this form, and nothing else:\n\n{schema}"


class Client:
    """Calls the configured endpoint. Belongs to one event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model = _anthropic(options) if options.adapter == "anthropic" else _openai(options)

    async def call(self, prompt: Prompt, before: Exchange | None, most: int) -> Reply:
        """Returns the answer, of at most `most` tokens. Raises CallFailed."""
        settings = ModelSettings(max_tokens=most, temperature=0.0, timeout=self._options.timeout)
        try:
            response = await model_request(
                self._model,
                _messages(prompt, before),
                model_settings=settings,
                model_request_parameters=_form(prompt, self._options.output),
            )
        except Exception as problem:  # an answer of a strange shape makes the clients raise whatever comes first
            raise _failed(problem) from None
        return _reply(response)


def _openai(options: Options) -> Model:
    from openai import AsyncOpenAI  # each of the two adapters takes some 45 MB of memory: only the one that is used
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    client = AsyncOpenAI(
        api_key=options.key or NO_KEY,
        base_url=options.url,
        max_retries=0,  # retries are counted against the budget, see asking.py
        http_client=http_client(options.timeout),
    )
    return OpenAIChatModel(options.name, provider=OpenAICompatibleProvider("configured", openai_client=client))


def _anthropic(options: Options) -> Model:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(
        api_key=options.key or NO_KEY,
        base_url=options.url,
        max_retries=0,
        http_client=http_client(options.timeout),
    )
    return AnthropicModel(options.name, provider=AnthropicProvider(anthropic_client=client))


def _messages(prompt: Prompt, before: Exchange | None) -> list[ModelMessage]:
    asked = ModelRequest.user_text_prompt(prompt.task, instructions=prompt.rules)
    if before is None:
        return [asked]
    more = ModelRequest.user_text_prompt(again(before.problem), instructions=prompt.rules)
    return [asked, ModelResponse(parts=[TextPart(before.answer or "(nothing)")]), more]


def _form(prompt: Prompt, output: str) -> ModelRequestParameters:
    if output == "tool":
        tool = ToolDefinition(name=prompt.name, description="The answer.", parameters_json_schema=prompt.schema)
        return ModelRequestParameters(output_mode="tool", output_tools=[tool], allow_text_output=False)
    shape = OutputObjectDefinition(json_schema=prompt.schema, name=prompt.name, description="The answer.")
    return ModelRequestParameters(
        output_mode="native" if output == "schema" else "prompted",
        output_object=shape,
        prompted_output_template=_TEMPLATE,
    )


def _reply(response: ModelResponse) -> Reply:
    filled = next((part.args for part in response.parts if isinstance(part, ToolCallPart)), None)
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    answer: str | dict[str, Any] = text
    if filled is not None:
        answer = filled if isinstance(filled, str) else dict(filled)
    usage = response.usage
    return Reply(answer, usage.input_tokens, usage.output_tokens, response.finish_reason == "length")


def _failed(problem: Exception) -> CallFailed:
    """Tells a failure in words of our own: the provider's may repeat the key, or what strangers wrote."""
    if isinstance(problem, ModelHTTPError):
        status = problem.status_code
        if status in KEY_REFUSED:
            return CallFailed(f"The model's endpoint refused the key (HTTP {status}): check [model] key.", again=False)
        if status >= 500 or status in TOO_EARLY:
            what = "is limiting its calls" if status == 429 else "failed"
            return CallFailed(f"The model's endpoint {what} (HTTP {status}).", again=True, after=problem.retry_after)
        return CallFailed(f"The model's endpoint refused the call (HTTP {status}): check [model].", again=False)
    if _too_large(problem):
        return CallFailed("The model's answer was too large to be read.", again=False, billed=True)
    if isinstance(problem, ModelTimeoutError):
        return CallFailed("The model did not answer in time.", again=True, billed=True)
    if isinstance(problem, ModelConnectionError):
        return CallFailed("The model's endpoint cannot be reached, or hung up: check [model] url.", again=True)
    return CallFailed(
        "The model's endpoint did not answer in the shape of its interface: check [model] url and adapter.",
        again=False,
        billed=True,
    )


def _too_large(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, TooLarge):
            return True
        problem = problem.__cause__ or problem.__context__
    return False
