{{/* One variable: {name, value}. */}}
{{- define "callmesh.variable" -}}
{{- /* Helm reads numbers as floating ones: a million would be written 1e+06, which no setting takes. */ -}}
{{- $whole := and (kindIs "float64" .value) (eq .value (floor .value)) -}}
- name: {{ .name }}
  value: {{ ternary (int64 .value) .value $whole | toString | quote }}
{{- end -}}

{{/* Environment of a process, of {root, process}. */}}
{{- define "callmesh.env" -}}
{{- $values := .root.Values -}}
{{- $prefix := upper .process.service -}}
{{- $server := eq .process.kind "server" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: {{ $prefix }}_INSTANCE
  value: $(POD_NAME)
{{- $plain := dict
  (printf "%s_HTTP_HOST" $prefix) "0.0.0.0"
  (printf "%s_HTTP_PORT" $prefix) 7101
  (printf "%s_DRAIN_NOTICE_SECONDS" $prefix) .process.values.drain.noticeSeconds
  (printf "%s_DRAIN_SECONDS" $prefix) .process.values.drain.seconds
  "LOG_FORMAT" "json"
  "LOG_LEVEL" $values.telemetry.logLevel
  "TRACE_RATIO" $values.telemetry.traceRatio -}}
{{- if not .process.floor -}}{{- $_ := set $plain "MONGO_URI_FILE" "/etc/callmesh/mongodb/uri" -}}{{- end -}}
{{- with $values.telemetry.otlpEndpoint -}}
{{- $_ := set $plain "OTEL_EXPORTER_OTLP_ENDPOINT" . -}}
{{- end -}}
{{- if not $server -}}
{{- $_ := set $plain "AMQP_URI_FILE" "/etc/callmesh/rabbitmq/uri" -}}
{{- else -}}
{{- $_ := set $plain (printf "%s_GRPC_HOST" $prefix) "0.0.0.0" -}}
{{- $_ := set $plain (printf "%s_GRPC_PORT" $prefix) 7100 -}}
{{- $_ := set $plain "AUTH_MODE" "jwt" -}}
{{- with $values.auth.jwks -}}
{{- if .name -}}{{- $_ := set $plain "AUTH_JWKS_FILE" "/etc/callmesh/jwks/jwks.json" -}}{{- end -}}
{{- with .url -}}{{- $_ := set $plain "AUTH_JWKS_URL" . -}}{{- end -}}
{{- if .authority.name -}}{{- $_ := set $plain "AUTH_JWKS_CA_FILE" "/etc/callmesh/jwks-authority/ca.crt" -}}{{- end -}}
{{- end -}}
{{- with $values.auth.binding -}}{{- $_ := set $plain "AUTH_BINDING" . -}}{{- end -}}
{{- if $values.limits -}}{{- $_ := set $plain "LIMITS_FILE" "/etc/callmesh/limits/limits.yaml" -}}{{- end -}}
{{- $_ := set $plain "AUTH_AUDIENCE" $values.auth.audience -}}
{{- with $values.auth.issuer -}}{{- $_ := set $plain "AUTH_ISSUER" . -}}{{- end -}}
{{- if $values.tls.enabled -}}
{{- $_ := set $plain "TLS_CERT_FILE" "/etc/callmesh/tls/tls.crt" -}}
{{- $_ := set $plain "TLS_KEY_FILE" "/etc/callmesh/tls/tls.key" -}}
{{- $_ := set $plain "TLS_CA_FILE" "/etc/callmesh/tls/ca.crt" -}}
{{- $_ := set $plain "TLS_CLIENTS" $values.tls.clients -}}
{{- end -}}
{{- with .process.floor -}}
{{- $_ := set $plain "DIALLER_REGION" .region -}}
{{- $_ := set $plain "DIALLER_INBOUND" .inbound -}}
{{- $_ := set $plain "DIALLER_OUTBOUND" .outbound -}}
{{- $_ := set $plain "DIALLER_ROUTING" (printf "%s-routing-%s.%s.svc:7100" (include "callmesh.fullname" $.root) .region $.root.Release.Namespace) -}}
{{- $_ := set $plain "DIALLER_MARKETING" (include "callmesh.diallerMarketing" $.root) -}}
{{- $_ := set $plain "DIALLER_TOKEN_FILE" "/etc/callmesh/dialler/token" -}}
{{- end -}}
{{- if .process.region -}}
{{- $_ := set $plain "ROUTING_REGION" .process.region -}}
{{- $_ := set $plain "ROUTING_PEERS" (include "callmesh.peers" .root) -}}
{{- $_ := set $plain "ROUTING_ADVERTISE" (printf "$(POD_NAME).%s:7100" (include "callmesh.routerDomain" (dict "root" .root "name" .process.name))) -}}
{{- $_ := set $plain "ROUTING_PLACE_TOKEN_KEY_FILE" "/etc/callmesh/routing/place-token.key" -}}
{{- $_ := set $plain "ROUTING_PEER_TOKEN_FILE" "/etc/callmesh/routing/peer.token" -}}
{{- end -}}
{{- end -}}
{{- $plain = mergeOverwrite $plain (default dict $values.env) (default dict .process.values.env) -}}
{{- range $name, $value := $plain }}
{{ include "callmesh.variable" (dict "name" $name "value" $value) }}
{{- end }}
{{- end -}}

{{/*
Probes, of {root, process}: Kubernetes' gRPC probe speaks plain text only, so TLS is probed over HTTP. A router has
started when it follows its shard: until then it serves, but the next one must not be restarted. A dialler may wait for
its floor as long as it likes.
*/}}
{{- define "callmesh.probes" -}}
{{- $http := or (eq .process.kind "worker") .root.Values.tls.enabled -}}
startupProbe:
  {{- include "callmesh.probe" (dict "http" true "path" (ternary "/healthz" "/readyz" (not (empty .process.floor)))) | nindent 2 }}
  periodSeconds: 2
  failureThreshold: 90
readinessProbe:
  {{- include "callmesh.probe" (dict "http" $http "path" "/readyz") | nindent 2 }}
  periodSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{- define "callmesh.probe" -}}
{{- if .http -}}
httpGet: {path: {{ .path }}, port: http}
timeoutSeconds: 3
{{- else -}}
grpc: {port: 7100}
timeoutSeconds: 3
{{- end -}}
{{- end -}}

{{/* The pod of a process, of {root, process}. */}}
{{- define "callmesh.pod" -}}
{{- $root := .root -}}
{{- $process := .process -}}
{{- $values := .process.values -}}
{{- $server := eq $process.kind "server" -}}
{{- $jwks := $root.Values.auth.jwks -}}
metadata:
  labels:
    {{- include "callmesh.labels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "callmesh.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $values.drain.noticeSeconds $values.drain.seconds 15 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  {{- include "callmesh.spread" . | nindent 2 }}
  containers:
    - name: {{ $process.service }}
      image: {{ include "callmesh.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      {{- $module := ternary $process.service (printf "%s.worker" $process.service) $server }}
      args: ["python", "-m", {{ ternary "routing.planning.dialler_main" $module (not (empty $process.floor)) | quote }}]
      env:
        {{- include "callmesh.env" . | nindent 8 }}
      ports:
        {{- if $server }}
        - {name: grpc, containerPort: 7100}
        {{- end }}
        - {name: http, containerPort: 7101}
      {{- include "callmesh.probes" . | nindent 6 }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if $process.floor }}
        - {name: dialler, mountPath: /etc/callmesh/dialler, readOnly: true}
        {{- else }}
        {{- include "callmesh.storeMounts" (dict "root" $root "store" "mongodb") | nindent 8 }}
        {{- end }}
        {{- range $values.files }}
        - {name: {{ printf "files-%s" .name }}, mountPath: {{ printf "/etc/callmesh/files/%s" .name }}, readOnly: true}
        {{- end }}
        {{- if not $server }}
        {{- include "callmesh.storeMounts" (dict "root" $root "store" "rabbitmq") | nindent 8 }}
        {{- else }}
        {{- if $jwks.name }}
        - {name: jwks, mountPath: /etc/callmesh/jwks, readOnly: true}
        {{- end }}
        {{- if $jwks.authority.name }}
        - {name: jwks-authority, mountPath: /etc/callmesh/jwks-authority, readOnly: true}
        {{- end }}
        {{- if $root.Values.limits }}
        - {name: limits, mountPath: /etc/callmesh/limits, readOnly: true}
        {{- end }}
        {{- if $root.Values.tls.enabled }}
        - {name: tls, mountPath: /etc/callmesh/tls, readOnly: true}
        {{- end }}
        {{- if $process.region }}
        - {name: routing, mountPath: /etc/callmesh/routing, readOnly: true}
        {{- end }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 256Mi}
    {{- if $process.floor }}
    {{- $token := dict "kind" "Secret" "name" $root.Values.dialler.tokenSecret "key" "token" }}
    {{- include "callmesh.fileVolume" (dict "volume" "dialler" "path" "token" "from" $token) | nindent 4 }}
    {{- else }}
    {{- include "callmesh.storeVolumes" (dict "root" $root "store" "mongodb" "service" $process.service) | nindent 4 }}
    {{- end }}
    {{- range $values.files }}
    - name: {{ printf "files-%s" .name }}
      {{- if eq .kind "Secret" }}
      secret: {secretName: {{ .name }}, defaultMode: 0440}
      {{- else }}
      configMap: {name: {{ .name }}}
      {{- end }}
    {{- end }}
    {{- if not $server }}
    {{- include "callmesh.storeVolumes" (dict "root" $root "store" "rabbitmq" "service" $process.service) | nindent 4 }}
    {{- else }}
    {{- if $jwks.name }}
    {{- include "callmesh.fileVolume" (dict "volume" "jwks" "path" "jwks.json" "from" $jwks) | nindent 4 }}
    {{- end }}
    {{- if $jwks.authority.name }}
    {{- include "callmesh.fileVolume" (dict "volume" "jwks-authority" "path" "ca.crt" "from" $jwks.authority) | nindent 4 }}
    {{- end }}
    {{- if $root.Values.limits }}
    {{- $limits := dict "kind" "ConfigMap" "name" (printf "%s-limits" (include "callmesh.fullname" $root)) "key" "limits.yaml" }}
    {{- include "callmesh.fileVolume" (dict "volume" "limits" "path" "limits.yaml" "from" $limits) | nindent 4 }}
    {{- end }}
    {{- if $root.Values.tls.enabled }}
    - name: tls
      secret: {secretName: {{ $root.Values.tls.existingSecret }}}
    {{- end }}
    {{- if $process.region }}
    - name: routing
      secret: {secretName: {{ $root.Values.routing.existingSecret }}}
    {{- end }}
    {{- end }}
  {{- include "callmesh.scheduling" $values | nindent 2 }}
{{- end -}}
