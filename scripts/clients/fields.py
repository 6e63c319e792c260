"""Writes crates/server/tests/it/fields.json: the fields of the requests that the official clients know.

    pip install openai==3.57.0 anthropic==2.14.0
    python scripts/clients/fields.py > crates/server/tests/it/fields.json
"""

import json

from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params


def fields(*params):
    return sorted({"stream"}.union(*(param.__annotations__ for param in params)))


print(
    json.dumps(
        {
            "chat/completions": fields(completion_create_params.CompletionCreateParamsBase),
            "responses": fields(response_create_params.ResponseCreateParamsBase),
            "messages": fields(
                message_create_params.MessageCreateParamsBase, beta_create_params.MessageCreateParamsBase
            ),
            "embeddings": sorted(embedding_create_params.EmbeddingCreateParams.__annotations__),
        },
        indent=1,
    )
)
