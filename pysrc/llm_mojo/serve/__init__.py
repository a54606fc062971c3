"""The command `serve`: a page to watch runs, play with models and look inside them, and OpenAI's completions for programs."""

import argparse
import ipaddress
import os
import secrets
import socket
from pathlib import Path

from llm_mojo import Error
from llm_mojo.runs import RUNS

PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo serve`."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="runs, checkpoints or gpt2, beside the runs in --runs"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help="folder of runs (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument("--token", help="what clients have to show (default: none on this machine, else a random one)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of matrix products (default: fp32)")
    parser.add_argument("--threads", type=int, help="threads of each model (default: one for each core)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="longest request (default: 600)")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo serve`."""
    import uvicorn

    from llm_mojo.serve.app import make_app
    from llm_mojo.serve.registry import Registry

    if not args.timeout > 0:
        raise Error(f"serve: --timeout: expected more than 0 seconds, found {args.timeout:g}")
    local = is_local(args.host)
    token = args.token or (None if local else secrets.token_urlsafe(16))
    listener = listen(args.host, args.port)
    registry = Registry(args.models, args.runs, dtype=args.dtype, threads=args.threads)
    for name in args.models:
        print(f"loading {name} ...", flush=True)
        try:
            registry.get(name)
        except Error as error:
            raise Error(f"serve: {error}") from None
    hosts = {"localhost", "127.0.0.1", "::1", args.host.lower()} if local else None
    app = make_app(registry, args.runs, hosts=hosts, token=token, timeout_s=args.timeout)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    print(f"open {address}{f'?token={token}' if token else ''} (Ctrl-C ends)", flush=True)
    print(f"OpenAI's protocol: base_url={address}v1{', api_key=' + token if token else ''}", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises Error with what to do if that cannot be."""
    if not 0 <= port < 65536:
        raise Error(f"serve: --port: expected 0 to 65535, found {port}")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        raise Error(
            f"serve: cannot listen at {host}, port {port}: {os.strerror(error.errno or 0)}; --port names another port (0: a free one)"
        ) from None
