{{- define "callmesh.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "callmesh.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "callmesh.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "callmesh.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "callmesh.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "callmesh.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "callmesh.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
The volumes of a store, of {root, store, service}: its connection string, from the operator's own secret where that
was asked, or from the service's own where it has one; and the authority of its certificate. Files and not variables:
a new password counts without a restart.
*/}}
{{- define "callmesh.storeVolumes" -}}
{{- $store := index .root.Values .store -}}
{{- $own := index $store.secrets .service -}}
{{- $from := dict "kind" "Secret" "name" (default $store.existingSecret $own) "key" $store.secretKey -}}
{{- if $store.operator.enabled -}}
{{- $made := dict
  "mongodb" (dict "name" "mongodb-admin-callmesh" "key" "connectionString.standard")
  "rabbitmq" (dict "name" "rabbitmq-default-user" "key" "connection_string") -}}
{{- $made = index $made .store -}}
{{- $from = dict "kind" "Secret" "name" (printf "%s-%s" (include "callmesh.fullname" .root) $made.name) "key" $made.key -}}
{{- end -}}
{{- include "callmesh.fileVolume" (dict "volume" .store "path" "uri" "from" $from) -}}
{{- if $store.authority.name }}
{{ include "callmesh.fileVolume" (dict "volume" (printf "%s-authority" .store) "path" "ca.crt" "from" $store.authority) }}
{{- end -}}
{{- end -}}

{{/* Where they are mounted, of {root, store}. */}}
{{- define "callmesh.storeMounts" -}}
- {name: {{ .store }}, mountPath: /etc/callmesh/{{ .store }}, readOnly: true}
{{- if (index .root.Values .store).authority.name }}
- {name: {{ .store }}-authority, mountPath: /etc/callmesh/{{ .store }}-authority, readOnly: true}
{{- end }}
{{- end -}}

{{/* Where pods may run, of {nodeSelector, tolerations, affinity}. */}}
{{- define "callmesh.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What gateways between a client and a server's port must speak to it. */}}
{{- define "callmesh.appProtocol" -}}
{{- ternary "https" "kubernetes.io/h2c" .Values.tls.enabled -}}
{{- end -}}

{{/* A volume with one key of a Secret or ConfigMap as the file `path`, of {volume, path, from: {kind, name, key}}. */}}
{{- define "callmesh.fileVolume" -}}
- name: {{ .volume }}
  {{- if eq .from.kind "Secret" }}
  secret: {secretName: {{ .from.name }}, items: [{key: {{ .from.key }}, path: {{ .path }}}], defaultMode: 0440}
  {{- else }}
  configMap: {name: {{ .from.name }}, items: [{key: {{ .from.key }}, path: {{ .path }}}]}
  {{- end }}
{{- end -}}

{{/* Pods of a process on as many zones and nodes as there are, of {root, process}. */}}
{{- define "callmesh.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "callmesh.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{/* Whether this release runs HQ's services, and whether it runs routers. */}}
{{- define "callmesh.hq" -}}{{- if has .Values.role (list "all" "hq") -}}true{{- end -}}{{- end -}}
{{- define "callmesh.routers" -}}{{- if has .Values.role (list "all" "region") -}}true{{- end -}}{{- end -}}

{{/*
The processes of this release as JSON: [{name, service, kind, region, values}], one for each Deployment or
StatefulSet. Everything else loops over it. A dialler has its `floor` besides: {region, inbound, outbound}; it keeps
nothing in a store.
*/}}
{{- define "callmesh.processes" -}}
{{- $found := list -}}
{{- $name := include "callmesh.fullname" . -}}
{{- if include "callmesh.routers" . -}}
{{- range .Values.regions -}}
{{- $values := merge (dict "replicas" (int .replicas)) $.Values.routing.server -}}
{{- $found = append $found (dict "name" (printf "%s-routing-%s" $name .id) "service" "routing" "kind" "server" "region" .id "values" $values) -}}
{{- end -}}
{{- if .Values.dialler.enabled -}}
{{- $free := list -}}{{- range .Values.regions -}}{{- $free = append $free .id -}}{{- end -}}
{{- range .Values.dialler.floors -}}
{{- if not (has .region $free) -}}{{- fail (printf "dialler.floors: %s is none of regions, or named twice" .region) -}}{{- end -}}
{{- $free = without $free .region -}}
{{- $values := merge (dict "replicas" 1) $.Values.dialler -}}
{{- $found = append $found (dict "name" (printf "%s-dialler-%s" $name .region) "service" "dialler" "kind" "server" "region" "" "floor" . "values" $values) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if include "callmesh.hq" . -}}
{{- $found = append $found (dict "name" (printf "%s-routing-worker" $name) "service" "routing" "kind" "worker" "region" "" "values" .Values.routing.worker) -}}
{{- range $service := list "crm" "tickets" "marketing" -}}
{{- $values := index $.Values $service -}}
{{- if $values.enabled -}}
{{- $found = append $found (dict "name" (printf "%s-%s" $name $service) "service" $service "kind" "server" "region" "" "values" $values.server) -}}
{{- $found = append $found (dict "name" (printf "%s-%s-worker" $name $service) "service" $service "kind" "worker" "region" "" "values" $values.worker) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $found -}}
{{- if has .name $names -}}{{- fail (printf "regions: two processes would have the name %s" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- /* Of a StatefulSet's name and a revision the cluster makes a label of 63 characters at most, and no pod without. */ -}}
{{- $longest := ternary 52 63 (ne .region "") -}}
{{- if gt (len .name) $longest -}}
{{- fail (printf "the name %s has %d characters, at most %d fit: shorten the release's (fullnameOverride) or the region's" .name (len .name) $longest) -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "items" $found) -}}
{{- end -}}

{{/* Labels that never change, of {root, process}. */}}
{{- define "callmesh.selectorLabels" -}}
app.kubernetes.io/name: {{ include "callmesh.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .process.service }}-{{ .process.kind }}
{{- with .process.region }}
callmesh.io/region: {{ . }}
{{- end }}
{{- with .process.floor }}
callmesh.io/region: {{ .region }}
{{- end }}
{{- end -}}

{{- define "callmesh.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: callmesh
{{- end -}}

{{- define "callmesh.labels" -}}
{{ include "callmesh.selectorLabels" . }}
{{ include "callmesh.commonLabels" .root }}
{{- end -}}

{{/* Labels of an object that belongs to no process, of the root. */}}
{{- define "callmesh.releaseLabels" -}}
app.kubernetes.io/name: {{ include "callmesh.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{ include "callmesh.commonLabels" . }}
{{- end -}}

{{/* By what its figures are told from another platform's in the same Prometheus. */}}
{{- define "callmesh.platform" -}}
{{- default .Release.Namespace .Values.monitoring.platform -}}
{{- end -}}

{{/* Where a dialler finds marketing: in this release, or where it is told. */}}
{{- define "callmesh.diallerMarketing" -}}
{{- if .Values.dialler.marketing.address -}}
{{- .Values.dialler.marketing.address -}}
{{- else if and (include "callmesh.hq" .) .Values.marketing.enabled -}}
{{- printf "%s-marketing.%s.svc:7100" (include "callmesh.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- fail "dialler.marketing.address: this release runs no marketing, so say where it is" -}}
{{- end -}}
{{- end -}}

{{/* Where the pods of a region's routers are, of {root, name}: the same name in every cluster, for lead lists have it. */}}
{{- define "callmesh.routerDomain" -}}
{{- default (printf "%s.%s.svc" .name .root.Release.Namespace) .root.Values.routing.domain -}}
{{- end -}}

{{/* All routers that a router of this release knows: `region=host:port`, by pod. */}}
{{- define "callmesh.peers" -}}
{{- $found := list -}}
{{- range $region := .Values.regions -}}
{{- $name := printf "%s-routing-%s" (include "callmesh.fullname" $) $region.id -}}
{{- $domain := include "callmesh.routerDomain" (dict "root" $ "name" $name) -}}
{{- range $ordinal := until (int $region.replicas) -}}
{{- $found = append $found (printf "%s=%s-%d.%s:7100" $region.id $name $ordinal $domain) -}}
{{- end -}}
{{- end -}}
{{- join "," (concat $found .Values.peers) -}}
{{- end -}}
