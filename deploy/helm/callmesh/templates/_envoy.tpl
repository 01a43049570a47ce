{{/* The proxy in the shape of a process; `callmesh.processes` does not list it, for it runs another image. */}}
{{- define "callmesh.proxy" -}}
{{- toJson (dict "name" (printf "%s-proxy" (include "callmesh.fullname" .)) "service" "proxy" "kind" "envoy" "region" "") -}}
{{- end -}}

{{/*
Where the proxy sends calls, as JSON: {items: [{service, host}]}. A router of any region takes any call; a gateway calls
the dialler of its own region, and itself.
*/}}
{{- define "callmesh.upstreams" -}}
{{- $root := . -}}
{{- $found := list -}}
{{- if include "callmesh.routers" . -}}
{{- $host := printf "%s-routing.%s.svc" (include "callmesh.fullname" .) .Release.Namespace -}}
{{- $found = append $found (dict "service" "routing" "host" $host) -}}
{{- end -}}
{{- range (include "callmesh.processes" . | fromJson).items -}}
{{- if and (eq .kind "server") (not .region) (not .floor) -}}
{{- $found = append $found (dict "service" .service "host" (printf "%s.%s.svc" .name $root.Release.Namespace)) -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "items" $found) -}}
{{- end -}}

{{/* Envoy's configuration. */}}
{{- define "callmesh.envoy" -}}
{{- $tls := .Values.tls -}}
{{- $streams := int .Values.proxy.streamsMax -}}
{{- $upstreams := (include "callmesh.upstreams" . | fromJson).items -}}
node: {id: proxy, cluster: {{ include "callmesh.fullname" . }}}
admin:
  # It can do everything, so it listens to nobody outside; what may be read goes through the listener `http`.
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  listeners:
    - name: grpc
      address: {socket_address: {address: 0.0.0.0, port_value: 7100}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: grpc
                codec_type: HTTP2
                # A caller may wait for an hour and say nothing; silence is the keepalive's matter.
                stream_idle_timeout: 0s
                common_http_protocol_options: {idle_timeout: 3600s}
                http2_protocol_options:
                  max_concurrent_streams: {{ $streams }}
                  connection_keepalive: {interval: 30s, timeout: 10s}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
                route_config:
                  name: services
                  virtual_hosts:
                    - name: services
                      domains: ["*"]
                      routes:
                        {{- range $upstreams }}
                        {{- $service := .service }}
                        # What each service has of its own (EventService, AuditService) is told apart by a header.
                        {{- $header := printf "{name: callmesh-service, string_match: {exact: %s}}" $service }}
                        {{- $common := printf "{prefix: /callmesh.common., headers: [%s]}" $header }}
                        {{- range list (printf "{prefix: /callmesh.%s.}" $service) $common }}
                        - match: {{ . }}
                          route:
                            cluster: {{ $service }}
                            # The client's deadline is what counts, and a stream has none.
                            timeout: 0s
                            max_stream_duration: {grpc_timeout_header_max: 0s}
                            # Only what no server has begun to handle is sent again, and to another one.
                            retry_policy:
                              retry_on: connect-failure,refused-stream,reset-before-request
                              num_retries: 3
                              host_selection_retry_max_attempts: 5
                              retry_host_predicate:
                                - name: envoy.retry_host_predicates.previous_hosts
                                  typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}
                        {{- end }}
                        {{- end }}
          {{- if $tls.enabled }}
          transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              require_client_certificate: {{ eq $tls.clients "certified" }}
              common_tls_context:
                alpn_protocols: [h2]
                {{- include "callmesh.envoyCertificate" . | nindent 16 }}
                {{- if eq $tls.clients "certified" }}
                validation_context: {trusted_ca: {filename: /etc/callmesh/tls/ca.crt}}
                {{- end }}
          {{- end }}
    - name: http
      address: {socket_address: {address: 0.0.0.0, port_value: 7101}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: http
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
                route_config:
                  name: admin
                  virtual_hosts:
                    - name: admin
                      domains: ["*"]
                      routes:
                        - match: {path: /ready}
                          route: {cluster: admin}
                        - match: {path: /stats/prometheus}
                          route: {cluster: admin}
  clusters:
    - name: admin
      type: STATIC
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}}]
    {{- range $upstreams }}
    - name: {{ .service }}
      # Every address that the headless service has; one that is gone from it still keeps its open streams.
      cluster_type:
        name: envoy.cluster.dns
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster
          dns_refresh_rate: 5s
          dns_lookup_family: ALL
      ignore_health_on_host_removal: true
      connect_timeout: 2s
      lb_policy: LEAST_REQUEST
      load_assignment:
        cluster_name: {{ .service }}
        endpoints:
          - lb_endpoints: [{endpoint: {address: {socket_address: {address: {{ .host }}, port_value: 7100}}}}]
      # A server that is told to end says NOT_SERVING while it goes on: it gets nothing new and keeps what it has.
      health_checks:
        - timeout: 1s
          interval: 2s
          no_traffic_interval: 2s
          unhealthy_threshold: 2
          healthy_threshold: 1
          grpc_health_check: {}
      circuit_breakers:
        thresholds: [{max_connections: 1024, max_pending_requests: {{ $streams }}, max_requests: {{ $streams }}, max_retries: 100}]
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 10s}}
      {{- if $tls.enabled }}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: {{ .host }}
          common_tls_context:
            alpn_protocols: [h2]
            {{- include "callmesh.envoyCertificate" $ | nindent 12 }}
            validation_context:
              trusted_ca: {filename: /etc/callmesh/tls/ca.crt}
              match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: {{ .host }}}}]
      {{- end }}
    {{- end }}
{{- end -}}

{{/* The certificate that both sides are shown, read again when its file changes. */}}
{{- define "callmesh.envoyCertificate" -}}
tls_certificate_sds_secret_configs:
  - name: certificate
    sds_config: {path_config_source: {path: /etc/envoy/certificate.yaml}, resource_api_version: V3}
{{- end -}}
