"""From a prompt to a stored, verified image in one task.

The task submits the prompt, waits in the triggerer without a worker slot, downloads the image, checks that it decodes
and has the requested size, and stores it with a ``.json`` sidecar that describes how it was made.

To draw something else, trigger the DAG with a configuration::

    airflow dags trigger qwenimage_prompt_to_file --conf '{"prompt": "A red fox in the snow", "seed": 7}'
"""

from __future__ import annotations

import os
from datetime import timedelta

# With Airflow 3 alone, write: from airflow.sdk import DAG, Param
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.contract import MAX_PROMPT_CHARACTERS, OUTPUT_FORMATS, SIZES

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")

with DAG(
    dag_id="qwenimage_prompt_to_file",
    schedule=None,
    # Retries are safe: a retry resumes an image that is already paid for.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    params={
        "prompt": Param(
            "A paper boat on a calm lake at sunrise, watercolour",
            type="string",
            minLength=1,
            maxLength=MAX_PROMPT_CHARACTERS,
            description="What to draw.",
        ),
        "size": Param("1024*1024", type="string", enum=list(SIZES), description="Width * height in pixels."),
        "seed": Param(-1, type="integer", minimum=-1, description="For reproducible results; -1 is random."),
        "output_format": Param("jpeg", type="string", enum=list(OUTPUT_FORMATS)),
        "output_path": Param(OUTPUT_PATH, type="string", minLength=1, description="The folder for the image."),
    },
    doc_md="""
    ### One task from prompt to file

    `draw` submits the prompt (**5 credits**), waits in the triggerer, and stores the verified image and its `.json`
    sidecar in `output_path`. Its result is a small dict with the paths, the credits and the seed.

    If you trigger it again with the same values, it finds the stored image and pays nothing (`reused: true`). Another
    prompt, seed or folder draws a new image.

    The trigger form asks for prompt, size, seed, format and folder. The default folder is the value of the environment
    variable `QWENIMAGE_OUTPUT_PATH`.

    Needs the connection `qwenimage_default`.
    """,
):
    QwenImageGenerateOperator(
        task_id="draw",
        prompt="{{ params.prompt }}",
        size="{{ params.size }}",
        seed="{{ params.seed }}",
        output_format="{{ params.output_format }}",
        output_path="{{ params.output_path }}",
        deferrable=True,
    )
