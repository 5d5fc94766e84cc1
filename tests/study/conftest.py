from tests.search.conftest import small_protocol
from tests.train.conftest import digits_folder

__all__ = ["digits_folder", "small_protocol"]
