"""The policies, one file each, in three families; queue policies share ``policies/shared``."""
