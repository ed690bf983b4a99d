# The build image. A digest pins it: --build-arg BASE=rust@sha256:…
ARG BASE=rust:1.95-slim-bookworm

# .ci/build-image does the same without a container engine.
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev
WORKDIR /build
# The dependencies are a separate layer, rebuilt only when one of these files changes.
COPY Cargo.toml Cargo.lock ./
COPY image ./image
RUN sh image/build.sh dependencies
COPY . .
RUN sh image/build.sh root /image

FROM scratch
ARG REVISION=
LABEL org.opencontainers.image.title="paybridge" \
      org.opencontainers.image.description="A gRPC service that connects a billing system to Stripe and charges every invoice exactly once." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image /
USER 65532:65532
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 50051 8080
ENTRYPOINT ["/paybridge"]
CMD ["serve"]
