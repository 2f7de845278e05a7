"""The checks of ``unfold doctor --target kubernetes``: what a controller needs of a cluster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

from unfold_placement.kubernetes.connection import ClusterAccess
from unfold_placement.kubernetes.manifests import (
    ACCOUNT,
    build_check_roles,
    build_counter_roles,
    build_gate_guard,
    build_roles,
)
from unfold_placement.kubernetes.objects.codec import DOMAIN, DRA
from unfoldkit.api import CheckResult, UnfoldError, format_count, format_names, format_value, user_error
from unfoldkit.kubernetes.api import Api, ApiError, call_all
from unfoldkit.spec.yaml_reader import parse

Body = dict[str, Any]
OLDEST = (1, 30)
"""Scheduling gates and admission policies are stable from this version of Kubernetes on."""
APPLY = "unfold plan SPEC --format kubernetes | kubectl apply -f -"
WORKLOAD_GROUPS = {"jobset.x-k8s.io": "JobSet", "kueue.x-k8s.io": "Kueue", "ray.io": "KubeRay"}
MAX_SHOWN = 4


def check_cluster() -> Mapping[str, CheckResult]:
    """Check the cluster of the current context, or of the pod in which this runs."""
    access = ClusterAccess()
    try:
        api = access.connect()
    except UnfoldError as error:
        return {"cluster": CheckResult(ok=False, message=error.diagnostics[0].message, hint=error.diagnostics[0].hint)}
    controllers = cache(partial(_list_controllers, api))
    settings = cache(lambda: _read_settings(api, controllers()))
    checks: Mapping[str, Callable[[], CheckResult]] = {
        "cluster": lambda: _check_version(api),
        "permissions": lambda: _check_permissions(api, settings()),
        "nodes": lambda: _check_nodes(api),
        "workloads": lambda: _list_workload_kinds(api),
        "gate guard": lambda: _check_guard(api, settings()),
        "controller": lambda: _check_controller(api, controllers()),
    }
    results: dict[str, CheckResult] = {}
    try:
        for name, check in checks.items():
            results[name] = _attempt(check)
            if name == "cluster" and not results[name].ok:
                break
    finally:
        api.close()
    return results


def _attempt(check: Callable[[], CheckResult]) -> CheckResult:
    try:
        return check()
    except ApiError as error:
        fault = "lacks what is needed" if error.is_absent else "denies access"
        return CheckResult(ok=False, message=f"the cluster {fault}: {error.message or error.reason}")
    except UnfoldError as error:
        hint = error.diagnostics[0].hint or "kubectl cluster-info shows whether the server responds"
        return CheckResult(ok=False, message=error.diagnostics[0].message, hint=hint)


def _check_version(api: Api) -> CheckResult:
    version = str(api.call("GET", "/version", tries=1).get("gitVersion", "of unknown version"))
    found = re.match(r"v(\d+)\.(\d+)", version)
    is_new = found is not None and (int(found[1]), int(found[2])) >= OLDEST
    message = f"Kubernetes {version} at {api.client.configuration.host}"
    return CheckResult(is_new, message, f"{'.'.join(map(str, OLDEST))} or later is needed")


def _check_permissions(api: Api, settings: Sequence[Body]) -> CheckResult:
    """Check what the roles permit: to the controller's account if it exists, and otherwise to the caller."""
    path = f"/api/v1/namespaces/{api.namespace}/serviceaccounts/{ACCOUNT}"
    found = call_all([partial(api.get, path)])[0]
    user = "" if isinstance(found, ApiError) else f"system:serviceaccount:{api.namespace}:{ACCOUNT}"
    roles = [role for item in settings for role in _needed_roles(item, api.namespace)]
    requests = _list_attributes(roles or build_roles(api.namespace), api.namespace)
    answers = call_all([partial(_is_allowed, api, attributes, user) for attributes in requests])
    refused = next((answer for answer in answers if isinstance(answer, ApiError)), None)
    if refused is not None:
        return CheckResult(ok=False, message=f"cannot be checked: {refused.message or refused.reason}")
    denied = [_describe(item) for item, answer in zip(requests, answers, strict=True) if not answer]
    identity = user or "this identity"
    if not denied:
        return CheckResult(ok=True, message=f"{identity} has all {len(requests)} that a controller needs")
    return CheckResult(ok=False, message=f"{identity} may not {format_names(denied, MAX_SHOWN)}", hint=APPLY)


def _read_settings(api: Api, controllers: Sequence[Body]) -> list[Body]:
    """Return the Kubernetes settings in the specs of the controllers that are deployed in the namespace."""
    found = []
    for deployment in controllers:
        for volume in deployment["spec"]["template"]["spec"].get("volumes") or ():
            name = (volume.get("configMap") or {}).get("name")
            if volume["name"] == "spec" and name:
                data = api.get(f"/api/v1/namespaces/{api.namespace}/configmaps/{name}").get("data") or {}
                hint = f"kubectl -n {api.namespace} edit configmap {name}"
                found.append(_parse_settings(data.get("spec.yaml", ""), f"ConfigMap {name}", hint))
    return found


def _parse_settings(text: str, source: str, hint: str) -> Body:
    """Return the Kubernetes settings in a spec, which may have been edited by hand."""
    try:
        settings = parse(text, source).data
    except UnfoldError as error:
        raise user_error(str(error), hint=hint) from error
    for key in ("cluster", "kubernetes"):
        settings = settings.get(key) if isinstance(settings, dict) else settings
    if settings is not None and not isinstance(settings, dict):
        message = f"{source}: its spec has {format_value(settings)} instead of the mapping cluster.kubernetes"
        raise user_error(message, hint=hint)
    return settings or {}


def _list_controllers(api: Api) -> list[Body]:
    """Return the Deployments of controllers, whatever their own labels are."""
    bodies: list[Body] = api.get(f"/apis/apps/v1/namespaces/{api.namespace}/deployments")["items"]
    return [
        body
        for body in bodies
        if (body["spec"]["selector"].get("matchLabels") or {}).get("app.kubernetes.io/name") == ACCOUNT
    ]


def _needed_roles(settings: Body, namespace: str) -> list[Body]:
    """Return the roles that a controller with some settings needs."""
    if settings.get("kueue"):
        return build_check_roles(namespace)
    counters = build_counter_roles(namespace) if settings.get("counters") == DRA else []
    return build_roles(namespace) + counters


def _list_attributes(roles: Sequence[Body], namespace: str) -> list[Body]:
    """List what roles permit, one request each."""
    listed: list[Body] = []
    for role in roles:
        where = {"namespace": namespace} if role["kind"] == "Role" else {}
        for rule in role.get("rules", ()) if role["kind"] in ("Role", "ClusterRole") else ():
            for group, resource, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"]):
                name, _, part = resource.partition("/")
                attributes = {"group": group, "resource": name, "subresource": part, "verb": verb, **where}
                if attributes not in listed:
                    listed.append(attributes)
    return listed


def _is_allowed(api: Api, attributes: Body, user: str) -> bool:
    kind = "SubjectAccessReview" if user else "SelfSubjectAccessReview"
    spec = {"resourceAttributes": attributes, **({"user": user} if user else {})}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    answer = api.post(f"/apis/authorization.k8s.io/v1/{kind.lower()}s", review)
    return bool((answer.get("status") or {}).get("allowed"))


def _describe(attributes: Body) -> str:
    part = f"/{attributes['subresource']}" if attributes["subresource"] else ""
    where = f" in {attributes['namespace']}" if "namespace" in attributes else ""
    return f"{attributes['verb']} {attributes['resource']}{part}{where}"


def _check_nodes(api: Api) -> CheckResult:
    bodies = api.get("/api/v1/nodes")["items"]
    ready = [body for body in bodies if _is_ready(body)]
    amounts = Counter[str]()
    for body in ready:
        for name, amount in (body.get("status") or {}).get("allocatable", {}).items():
            # extended resources, such as nvidia.com/gpu, are whole numbers; those of policies come and go
            if "/" in name and f".{DOMAIN}/" not in name and str(amount).isdigit():
                amounts[name] += int(amount)
    tainted = sum(bool((body.get("spec") or {}).get("taints")) for body in ready)
    parts = [f"{len(ready)} of {format_count(len(bodies), 'node')} ready"]
    parts += [f"{name} {amount:,}" for name, amount in sorted(amounts.items()) if amount]
    parts += [f"{tainted} with taints"] if tainted else []
    return CheckResult(bool(ready), ", ".join(parts), "kubectl describe nodes")


def _is_ready(body: Body) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    is_ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)
    return is_ready and not (body.get("spec") or {}).get("unschedulable")


def _list_workload_kinds(api: Api) -> CheckResult:
    groups = {group["name"] for group in api.get("/apis")["groups"]}
    found = [name for group, name in WORKLOAD_GROUPS.items() if group in groups]
    absent = [name for name in WORKLOAD_GROUPS.values() if name not in found]
    message = f"Job, Deployment and pods{''.join(f', {name}' for name in found)}"
    return CheckResult(ok=True, message=f"{message}; not installed: {', '.join(absent)}" if absent else message)


def _check_guard(api: Api, settings: Sequence[Body]) -> CheckResult:
    if settings and all(item.get("kueue") for item in settings):
        return CheckResult(ok=True, message="not needed: admission checks open no gates")
    absent = []
    for body in build_gate_guard(api.namespace):
        kind, name = body["kind"], body["metadata"]["name"]
        plural = "validatingadmissionpolicies" if kind == "ValidatingAdmissionPolicy" else f"{kind.lower()}s"
        answer = call_all([partial(api.get, f"/apis/{body['apiVersion']}/{plural}/{name}")])[0]
        if isinstance(answer, ApiError):
            if not answer.is_absent:
                raise answer
            absent.append(f"{kind} {name}")
    if not absent:
        return CheckResult(ok=True, message="only the controller removes gates from pods")
    message = f"anyone who may update pods can bypass the policy: there is no {format_names(absent, MAX_SHOWN)}"
    return CheckResult(ok=False, message=message, hint=APPLY)


def _check_controller(api: Api, found: Sequence[Body]) -> CheckResult:
    if not found:
        return CheckResult(ok=True, message=f"none is deployed in the namespace {api.namespace}")
    ready = {body["metadata"]["name"]: (body.get("status") or {}).get("readyReplicas") or 0 for body in found}
    message = ", ".join(f"{name}: {format_count(count, 'replica')} ready" for name, count in ready.items())
    return CheckResult(all(ready.values()), message, f"kubectl -n {api.namespace} get pods")
