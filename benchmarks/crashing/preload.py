"""What the fork server imports once, so that a case pays for none of it; nothing of the product itself stays."""

from __future__ import annotations

import sys

from tasks.model import torchvision_shim

torchvision_shim.ensure()
SCHEMAS = torchvision_shim._library  # they go when the library object does

import boto3  # noqa: E402
import datasets  # noqa: E402, F401
import fastapi  # noqa: E402, F401
import numpy  # noqa: E402, F401
import open_clip  # noqa: E402, F401
import PIL.Image  # noqa: E402
import PIL.ImageFile  # noqa: E402
import prefect  # noqa: E402
import prefect.cache_policies  # noqa: E402
import prefect.client.schemas.objects  # noqa: E402
import prefect.flow_engine  # noqa: E402
import prefect.task_engine  # noqa: E402
import prefect.utilities.visualization  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import rich.progress  # noqa: E402, F401
import ruamel.yaml  # noqa: E402, F401
import safetensors.torch  # noqa: E402, F401
import typer  # noqa: E402, F401

PIL.Image.init()  # its plugins
boto3.Session("x", "x", region_name="us-east-1").client("s3")  # what botocore imports for it

for name in [name for name in sys.modules if name.partition(".")[0] in ("flows", "tasks")]:
    del sys.modules[name]  # a case runs the code of its own project
