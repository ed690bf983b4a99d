FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --no-default-features && cp target/release/paybridge /paybridge

# Everything that the binary needs and nothing else: itself, its C libraries, the certificates by which it knows Stripe,
# and an account that is not root.
RUN mkdir -p /image/etc/ssl/certs \
    && cp /paybridge /image/paybridge \
    && ldd /paybridge | grep -o '/[^ ]*' | xargs -I{} cp --parents -L {} /image \
    && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' > /image/etc/passwd \
    && echo 'nonroot:x:65532:' > /image/etc/group

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 50051 8080
ENTRYPOINT ["/paybridge"]
CMD ["serve"]
