#!/usr/bin/env bash
# Creates the two roles that infra/aws/cluster.yaml names, once per account. Existing ones stay, so it can be run again.
# rayclip-node may use the one bucket; rayclip-head may also launch and end the instances of this cluster.
#
#   infra/aws/create_roles.sh
set -euo pipefail
cd "$(dirname "$0")"

if grep -n "YOUR""_" iam-*.json; then
    echo "these lines still contain a placeholder; infra/README.md says how to fill them in" >&2
    exit 2
fi
for role in rayclip-node rayclip-head; do
    aws iam get-role --role-name "$role" > /dev/null 2>&1 ||
        aws iam create-role --role-name "$role" --assume-role-policy-document file://iam-trust.json
    aws iam put-role-policy --role-name "$role" --policy-name bucket --policy-document file://iam-policy.json
    aws iam get-instance-profile --instance-profile-name "$role" > /dev/null 2>&1 ||
        aws iam create-instance-profile --instance-profile-name "$role"
    held=$(aws iam get-instance-profile --instance-profile-name "$role" --query 'InstanceProfile.Roles[].RoleName' --output text)
    [ "$held" = "$role" ] ||
        aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam put-role-policy --role-name rayclip-head --policy-name launch --policy-document file://iam-head-policy.json
# An account's first spot instance needs this role; in most accounts it exists already.
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com || true
