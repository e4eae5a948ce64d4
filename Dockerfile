# docker build -t sb3-vla . && docker run --rm --shm-size=1g -v $PWD/runs:/runs sb3-vla quickstart --out /runs/quickstart
# With a GPU: --build-arg TORCH_OPTIONS= and docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all
FROM python:3.12-slim

RUN apt-get update && apt-get install -y --no-install-recommends libegl1 libosmesa6 && rm -rf /var/lib/apt/lists/*

ARG TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
RUN pip install --no-cache-dir torch==2.13.0 $TORCH_OPTIONS

ARG EXTRAS=cli,fetch,lerobot,lora
COPY . /source
RUN pip install --no-cache-dir "/source[$EXTRAS]" && rm -rf /source

ENTRYPOINT ["sb3-vla"]
CMD ["--help"]
